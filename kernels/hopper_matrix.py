"""What the kernels by tiles, `hopper_tile.cu`, are told of a matrix, their source, and how the work is shared out."""

import ctypes
from functools import cache
from typing import Final

import torch

from .cuda_driver import Kernel, Module
from .hopper_source import assemble
from .hopper_types import SCALE_TYPES
from .table import V_COLUMNS, Table

TYPES: Final = (torch.float16, torch.bfloat16)
"""Of x, y and W."""
SIDE: Final = 128
"""Rows of a strip."""
TILE: Final = 256
"""Columns of a tile."""
THREADS: Final = 256
"""Of a program."""
HELD: Final = 24
"""Segments that a chain may have."""
_STAGES: Final = 4
"""Segments of tiles in the ring."""
_HELD_BYTES: Final = (2 * 16 + 24 + 2 * 64) * HELD + 4 * SIDE + _STAGES * (16 + SIDE * TILE // 8 + 32 * TILE) + 256
_SEGMENT_BYTES: Final = 32 * SIDE
SHARED_MOST: Final = 226 << 10
"""Bytes of shared memory that a program may have beside what the source declares."""
_TOGETHER: Final = ((2, 112 << 10, 1.0), (1, SHARED_MOST, 0.75))
"""How many programs run at once on a multiprocessor with so many bytes, and what each takes of the time of two."""
_START: Final = 1.5
"""What a program takes before it begins with its first tile, in tiles."""
_PART: Final = 0.25
"""What the sums of one more part take, in tiles."""


class Matrix(ctypes.Structure):
    """`Matrix` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_scale", "col_scale", "table", "counts")),
        *((name, ctypes.c_int) for name in ("rows", "chain_rows", "columns", "col_stride", "capacity", "ranks")),
        *((name, ctypes.c_int) for name in ("row_type", "col_type")),
    )


def describe(table: Table) -> Matrix:
    """The matrix of a table; the table must outlive what is launched with it."""
    tensors = (table.row_scale, table.col_scale, table.rows_of_table, table.counts)
    return Matrix(
        *(t.data_ptr() for t in tensors),
        *(table.rows, table.chain_rows, table.columns, table.col_stride, table.capacity, table.ranks),
        SCALE_TYPES[table.row_scale.dtype],
        SCALE_TYPES[table.col_scale.dtype],
    )


def takes(dtype: torch.dtype, table: Table) -> bool:
    """Whether the kernels are for a type, and for a matrix."""
    return dtype in TYPES and table.hopper is not None and table.capacity <= HELD


def source(part: str, dtype: torch.dtype, **open_: int) -> str:
    """The source of `hopper_{part}.cu` for a type, with all that it leaves open."""
    open_ |= {"HELD": HELD, "HELD_BYTES": _HELD_BYTES, "GROUP": V_COLUMNS, "STAGES": _STAGES}
    return assemble("values", "assembly", "tile", "strip", "entries", part, bfloat=dtype == torch.bfloat16, **open_)


@cache
def kernel_for(part: str, name: str, dtype: torch.dtype, tokens: int, device: torch.device) -> Kernel:
    """A kernel of `hopper_{part}.cu` by its name, for a type and up to so many tokens, loaded on a device."""
    with torch.cuda.device(device):
        return _module(part, dtype, tokens, device).kernel(name, SHARED_MOST)


@cache
def _module(part: str, dtype: torch.dtype, tokens: int, device: torch.device) -> Module:
    # By the device, since it is loaded there.
    return Module(source(part, dtype, **({"TOKENS": tokens} if tokens else {})), "sm_90a")


@cache
def share_out(columns: int, programs: int, processors: int, capacity: int, tile_bytes: int) -> tuple[int, int]:
    """In how many parts the columns are shared out, and the bytes of shared memory of a program.

    Args:
        columns: of the matrix.
        programs: for each part.
        processors: multiprocessors of the device.
        capacity: segments of a chain.
        tile_bytes: of shared memory for each tile of a program.

    Raises:
        ValueError: not even one tile has room.
    """
    tiles = -(-columns // TILE)
    fixed = _HELD_BYTES + capacity * _SEGMENT_BYTES
    ways = []
    for parts in range(1, tiles + 1):
        each = -(-tiles // parts)
        shared = fixed + each * tile_bytes
        for number, most, time in _TOGETHER:
            if shared <= most:
                waves = -(-programs * parts // (processors * number))
                ways.append((waves * (each + _START) * time + _PART * parts, parts, shared))
                break
    if not ways:
        raise ValueError(f"{capacity} segments need more than the {SHARED_MOST} bytes of shared memory of a program")
    return min(ways)[1:]
