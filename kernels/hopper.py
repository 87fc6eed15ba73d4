"""y = x·Wᵀ for few tokens on compute capability 9.0, whose tensor cores multiply signs as the single bits they are.

The kernels are CUDA C++, `hopper_*.cu`: Triton knows no products of bits. This module prepares and launches them.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from .cuda_driver import Kernel, Module
from .devices import on_device
from .hopper_source import assemble
from .hopper_table import SLICE, TILE, HopperTable
from .hopper_types import SCALE_TYPES
from .running_sums import running_sums
from .shares import FIELDS as SHARE_FIELDS
from .table import Table

BITS: Final = {torch.bfloat16: 14, torch.float16: 16}
"""Bits of a number of Z, by the type of x: more than x has, since a slice of columns shares a step."""
_SHARED_BYTES: Final = 210 << 10
"""Shared memory that a program may have, beside what the source declares."""
_STAGE_BYTES: Final = TILE * SLICE // 8 + TILE * 32 + 16 + TILE * 8
_THREADS: Final = 20 * 32
_ADDERS: Final = 1 << 11
"""So many the sum of a row cannot count any more."""
_SOURCES: Final = ("values", "assembly", "common", "units", "ring", "z", "sums", "helpers", "multiply")
"""Of the source, in this order."""


class _Arguments(ctypes.Structure):
    """`Args` of the source."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "col_scale", "bias", "table", "counts", "maps", "shares", "row_values")
        ),
        *((name, ctypes.c_void_p) for name in ("sums", "y")),
        *((name, ctypes.c_int) for name in ("rows", "chain_rows", "columns", "col_stride", "n_chains", "capacity")),
        *((name, ctypes.c_int) for name in ("slices", "col_type", "bias_type")),
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel compiled for a type of x, a number of tokens and columns of the factors."""

    bits: int
    ranks: int
    tokens: int
    bfloat: bool

    def sizes(self) -> tuple[int, int, int]:
        """Bytes for Z, stages of the ring of signs, and bytes of shared memory of both."""
        z = self.ranks * self.bits * SLICE // 8  # of a token
        v = SLICE // 32 * 33 * 2 * self.ranks  # it lies where the Z of the last token comes
        space = -(-((self.tokens - 1) * z + max(z, v)) // 1024) * 1024
        stages = min(8, (_SHARED_BYTES - space) // _STAGE_BYTES)
        return space, stages, space + stages * _STAGE_BYTES

    def source(self) -> str:
        """The source with all that it leaves open."""
        space, stages, _ = self.sizes()
        n = self.bits * 8
        # One product of 64 rows of signs, N columns and 256 bits; the sums are N / 2 registers of each of 128 threads.
        # What describes the factors to the tensor cores differs in its lower half alone: DESCRIBED is the upper one.
        sums = ", ".join(f"%{i}" for i in range(n // 2))
        operands = ", ".join(f'"+r"((acc)[{i}])' for i in range(n // 2))
        left, right, add = (f"%{n // 2 + i}" for i in range(3))
        product = (
            f'asm volatile("{{ .reg .pred p; .reg .b64 d, e; setp.ne.b32 p, {add}, 0; '
            f"mov.b64 d, {{{left}, %{n // 2 + 3}}}; mov.b64 e, {{{right}, %{n // 2 + 3}}}; "
            f'wgmma.mma_async.sync.aligned.m64n{n}k256.s32.b1.b1.and.popc {{{sums}}}, d, e, p; }}" '
            f': {operands} : "r"(a), "r"(b), "r"((int)(add)), "n"(DESCRIBED))'
        )
        open_ = {
            "BITS": self.bits,
            "RANKS": self.ranks,
            "TOKENS": self.tokens,
            "STAGES": stages,
            "Z_SPACE": space,
            "SHARE_FIELDS": SHARE_FIELDS,
            "WGMMA(acc, a, b, add)": product,
        }
        return assemble(*_SOURCES, bfloat=self.bfloat, **open_)


@cache
def kernel_for(variant: Variant, device: torch.device) -> Kernel:
    """The kernel, loaded on a device."""
    with torch.cuda.device(device):
        return Module(variant.source(), "sm_90a").kernel("multiply", variant.sizes()[2])


def takes(x: torch.Tensor, table: Table) -> bool:
    """Whether these kernels are for such an input and such a matrix."""
    adders = table.capacity * -(-table.columns // SLICE) * (table.ranks // 8) + 1
    return x.dtype in BITS and table.hopper is not None and adders < _ADDERS


def multiply_few(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns], by one, two or four tokens at a time.

    Capturable in a CUDA graph: what is resident is read from the table when the graph is replayed. All sums are of
    whole numbers, so that the same input gives the same bits.

    Raises:
        ValueError: the kernels are not for such a matrix.
        DriverError: the kernel cannot be compiled or launched.
    """
    if not takes(x, table) or table.hopper is None:
        raise ValueError(f"the kernels do not take {x.dtype} for such a matrix: see `takes`")
    with on_device(x.device):
        x, start = x.contiguous(), 0
        while start < len(x):
            stop = start + min(table.hopper.few, 1 << (len(x) - start).bit_length() - 1)
            _multiply(x[start:stop], table, table.hopper, bias, out[start:stop])
            start = stop


def _multiply(x: torch.Tensor, table: Table, known: HopperTable, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    variant = Variant(BITS[x.dtype], table.ranks, len(x), x.dtype == torch.bfloat16)
    if bias is not None and bias.dtype not in SCALE_TYPES:
        bias = bias.float()
    sums = running_sums(len(x) * table.rows, x.device)
    tensors = (x, table.col_scale, bias, table.rows_of_table, table.counts, known.maps, known.shares, known.row_values)
    arguments = _Arguments(
        *(None if t is None else t.data_ptr() for t in (*tensors, sums, out)),
        *(table.rows, table.chain_rows, table.columns, table.col_stride, table.n_chains, table.capacity),
        -(-table.columns // SLICE),
        SCALE_TYPES[table.col_scale.dtype],
        0 if bias is None else SCALE_TYPES[bias.dtype],
    )
    kernel_for(variant, x.device).launch((len(known.shares) - 1, 1, 1), _THREADS, arguments)
