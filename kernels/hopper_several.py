"""y = x·Wᵀ for several tokens on compute capability 9.0: `hopper_several.cu`."""

import ctypes
from functools import cache
from typing import Final

import torch

from .cuda_driver import Kernel, Module
from .devices import multiprocessors
from .hopper_matrix import SCALE_TYPES, SIDE, THREADS, Matrix, describe, source
from .table import Table
from .tiles import on_device

MOST: Final = 16
"""Tokens that one launch takes."""
_AT_ONCE: Final = 2
"""Programs that a multiprocessor runs at once."""
_PART_COST: Final = 0.25
"""What the sums of one more part take, in tiles of a program."""


class _Arguments(ctypes.Structure):
    """`SeveralArgs` of the source."""

    _fields_ = (
        ("matrix", Matrix),
        *((name, ctypes.c_void_p) for name in ("x", "bias", "partial", "y")),
        *((name, ctypes.c_int) for name in ("tokens", "parts", "bias_type")),
    )


@cache
def kernels_for(dtype: torch.dtype, tokens: int, device: torch.device) -> tuple[Kernel, Kernel]:
    """The kernels for a type and up to 8 or 16 tokens, loaded on a device: of the products, and of the last sums."""
    with torch.cuda.device(device):
        module = Module(source("several", dtype, TOKENS=tokens), "sm_90a")
        return module.kernel("multiply_several"), module.kernel("add_up")


@cache
def parts_of(columns: int, programs: int, room: int) -> int:
    """In how many parts the columns are shared out.

    Args:
        columns: of the matrix. programs: for each part. room: programs that run at once.
    """
    tiles = -(-columns // SIDE)

    def cost(parts: int) -> float:
        return -(-programs * parts // room) * -(-tiles // parts) + _PART_COST * parts

    return min(range(1, tiles + 1), key=cost)


def multiply_several(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns], by up to `MOST` tokens at a time.

    W is rounded to the type of x, as where it is written out. Capturable in a CUDA graph: what is resident is read from
    the table when the graph is replayed. All sums have one order, so that the same input gives the same bits.

    Raises:
        DriverError: the kernels cannot be compiled or launched.
    """
    x = x.contiguous()
    if bias is not None and bias.dtype not in SCALE_TYPES:
        bias = bias.float()
    tiles = -(-table.chain_rows // SIDE)
    parts = parts_of(table.columns, tiles * table.n_chains, _AT_ONCE * multiprocessors(x.device))
    matrix = describe(table)
    for start in range(0, len(x), MOST):
        part, y = x[start : start + MOST], out[start : start + MOST]
        multiply, add_up = kernels_for(x.dtype, 8 if len(part) <= 8 else MOST, x.device)
        partial = torch.empty(parts * len(part) * table.rows, dtype=torch.float32, device=x.device)
        arguments = _Arguments(
            matrix,
            *(None if t is None else t.data_ptr() for t in (part, bias, partial, y)),
            len(part),
            parts,
            0 if bias is None else SCALE_TYPES[bias.dtype],
        )
        with on_device(x.device):
            multiply.launch((parts, tiles, table.n_chains), THREADS, arguments)
            add_up.launch((-(-table.rows // THREADS), len(part), 1), THREADS, arguments)
