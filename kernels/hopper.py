"""y = x·Wᵀ for few tokens on compute capability 9.0, whose tensor cores multiply signs as the single bits they are.

The kernels are CUDA C++, `hopper_*.cu`: Triton knows no products of bits. This module prepares and launches them.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

import torch

from .cuda_driver import Kernel, Module
from .shares import FIELDS as SHARE_FIELDS
from .shares import PARTS
from .table import FIELD_NAMES, FIELDS, SIGN8, SLICE, TILE, Table
from .tiles import on_device

BITS: Final = {torch.bfloat16: 14, torch.float16: 16}
"""Bits of a number of Z, by the type of x: more than x has, since a slice of columns shares a step."""
TOKENS: Final = 2
"""Tokens that one launch takes; more take several."""
_SHARED_BYTES: Final = 220 << 10
"""Shared memory that a program may have, beside what the source declares."""
_STAGE_BYTES: Final = TILE * SLICE // 8 + TILE * 32 + 16
_THREADS: Final = 20 * 32
_TILE_PARTS: Final = 4
"""Programs that add up the entries of a tile of a sparse block."""
_SOURCES: Final = ("values", "assembly", "common", "units", "scale", "ring", "finish", "multiply")
"""Of the source, in this order."""
_SCALE_TYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _Arguments(ctypes.Structure):
    """`Args` of the source."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "row_scale", "col_scale", "bias", "table", "counts", "maps", "shares")
        ),
        *((name, ctypes.c_void_p) for name in ("z", "partial", "arrived", "y")),
        *((name, ctypes.c_int) for name in ("rows", "chain_rows", "columns", "col_stride", "n_chains", "capacity")),
        *((name, ctypes.c_int) for name in ("tiles", "slices", "row_type", "col_type", "bias_type")),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """Kernels compiled for a type of x, a number of tokens and columns of the factors."""

    bits: int
    ranks: int
    tokens: int
    bfloat: bool

    @property
    def z_bytes(self) -> int:
        """Bytes of Z of a segment and a slice: the bits, then steps and sums."""
        return self.tokens * self.ranks * (self.bits * SLICE // 8 + 4 * (1 + SLICE // 128))

    def sizes(self) -> tuple[int, int, int]:
        """Buffers for Z, stages of the ring of signs, and bytes of shared memory of both."""
        buffers = 2 if self.tokens == 1 else 1
        fixed = buffers * (-(-self.z_bytes // 1024) * 1024)
        stages = min(8, (_SHARED_BYTES - fixed) // _STAGE_BYTES)
        return buffers, stages, fixed + stages * _STAGE_BYTES

    def source(self) -> str:
        """The source with all that it leaves open."""
        buffers, stages, _ = self.sizes()
        n = self.bits * 8
        open_ = {
            "BITS": self.bits,
            "RANKS": self.ranks,
            "TOKENS": self.tokens,
            "BFLOAT": int(self.bfloat),
            "STAGES": stages,
            "Z_BUFFERS": buffers,
            "SIGN8": SIGN8,
            "TILE_PARTS": _TILE_PARTS,
            "FIELDS": FIELDS,
            "SHARE_FIELDS": SHARE_FIELDS,
            **{name: number for number, name in enumerate(FIELD_NAMES)},
        }
        # One product of 64 rows of signs, N columns and 256 bits; the sums are N / 2 registers of each of 128 threads.
        # What describes the factors to the tensor cores differs in its lower half alone: DESCRIBED is the upper one.
        sums = ", ".join(f"%{i}" for i in range(n // 2))
        operands = ", ".join(f'"+r"((acc)[{i}])' for i in range(n // 2))
        left, right, add = (f"%{n // 2 + i}" for i in range(3))
        product = (
            f'#define WGMMA(acc, a, b, add) asm volatile("{{ .reg .pred p; .reg .b64 d, e; setp.ne.b32 p, {add}, 0; '
            f"mov.b64 d, {{{left}, %{n // 2 + 3}}}; mov.b64 e, {{{right}, %{n // 2 + 3}}}; "
            f'wgmma.mma_async.sync.aligned.m64n{n}k256.s32.b1.b1.and.popc {{{sums}}}, d, e, p; }}" '
            f': {operands} : "r"(a), "r"(b), "r"((int)(add)), "n"(DESCRIBED))'
        )
        defined = "\n".join(f"#define {name} {value}" for name, value in open_.items())
        texts = [files(__package__).joinpath(f"hopper_{part}.cu").read_text("utf-8") for part in _SOURCES]
        return "\n".join([defined, product, *texts])


@cache
def kernels_for(variant: Variant, device: torch.device) -> tuple[Kernel, Kernel]:
    """The kernels for the scaled input and for the products, loaded on a device."""
    with torch.cuda.device(device):
        module = Module(variant.source(), "sm_90a")
        return module.kernel("scale_input"), module.kernel("multiply", variant.sizes()[2])


def takes(x: torch.Tensor, table: Table) -> bool:
    """Whether these kernels are for such an input and such a matrix."""
    return x.dtype in BITS and table.shares is not None


def multiply_few(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns], by two tokens at a time.

    Capturable in a CUDA graph: what is resident is read from the table when the graph is replayed. All sums have one
    order, so that the same input gives the same bits.

    Raises:
        DriverError: the kernels cannot be compiled or launched.
    """
    with on_device(x.device):
        x = x.contiguous()
        for start in range(0, len(x), TOKENS):
            _multiply(x[start : start + TOKENS], table, bias, out[start : start + TOKENS])


def _multiply(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    variant = Variant(BITS[x.dtype], table.ranks, len(x), x.dtype == torch.bfloat16)
    scale_input, multiply = kernels_for(variant, x.device)
    if bias is not None and bias.dtype not in _SCALE_TYPES:
        bias = bias.float()
    slices, tiles = -(-table.columns // SLICE), -(-table.chain_rows // TILE)
    places = table.n_chains * table.capacity
    sums = places * tiles * slices * (table.ranks // 8) * len(x)
    partial = torch.empty(sums * TILE, dtype=torch.float32, device=x.device)
    z = torch.empty(places * slices * variant.z_bytes, dtype=torch.uint8, device=x.device)
    arrived = torch.empty(table.n_chains * tiles, dtype=torch.int32, device=x.device)
    if table.shares is None:  # `takes` asks for it
        raise ValueError("the table has no shares: rows of signs are not a multiple of 16 bytes")
    tensors = (x, table.row_scale, table.col_scale, bias, table.rows_of_table, table.counts, table.maps, table.shares)
    arguments = _Arguments(
        *(None if t is None else t.data_ptr() for t in (*tensors, z, partial, arrived, out)),
        *(table.rows, table.chain_rows, table.columns, table.col_stride, table.n_chains, table.capacity, tiles, slices),
        _SCALE_TYPES[table.row_scale.dtype],
        _SCALE_TYPES[table.col_scale.dtype],
        0 if bias is None else _SCALE_TYPES[bias.dtype],
    )
    scalers = slices * PARTS * table.capacity + (_TILE_PARTS * tiles if table.sparse else 0)
    scale_input.launch((scalers, table.n_chains, 1), 32 * table.ranks, arguments)
    multiply.launch((len(table.shares) - 1, 1, 1), _THREADS, arguments)
