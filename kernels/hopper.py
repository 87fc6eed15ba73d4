"""y = x·Wᵀ for few tokens on compute capability 9.0, whose tensor cores multiply signs as the single bits they are.

The kernels are CUDA C++, `hopper_*.cu`: Triton knows no products of bits. This module prepares and launches them.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch

from .cuda_driver import Kernel, Module
from .devices import on_device
from .hopper_source import assemble
from .hopper_table import SLICE, TILE
from .hopper_types import SCALE_TYPES
from .running_sums import running_sums
from .shares import FIELDS as SHARE_FIELDS
from .table import Table
from .together import MOST, Together

BITS: Final = {torch.bfloat16: 14, torch.float16: 16}
"""Bits of a number of Z, by the type of x: more than x has, since a slice of columns shares a step."""
_SHARED_BYTES: Final = 210 << 10
"""Shared memory that a program may have, beside what the source declares."""
_STAGE_BYTES: Final = TILE * SLICE // 8 + TILE * 32 + 16 + TILE * 8
_THREADS: Final = 20 * 32
_ADDERS: Final = 1 << 11
"""So many the sum of a row cannot count any more."""
_SOURCES: Final = ("values", "assembly", "common", "units", "ring", "z", "sums")
"""Of the source, in this order; two more follow."""


class _Matrix(ctypes.Structure):
    """`Matrix` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("col_scale", "bias", "table", "counts", "maps", "row_values", "y")),
        *((name, ctypes.c_int) for name in ("rows", "chain_rows", "col_stride", "capacity", "bias_type", "first")),
    )


class _Common(ctypes.Structure):
    """`Common` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "shares", "sums")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "n_chains", "capacity", "slices", "col_type")),
    )


@cache
def _given(matrices: int) -> Any:
    """`Given` of the source."""
    fields = (("common", _Common), ("matrices", _Matrix * matrices))
    return type("_Given", (ctypes.Structure,), {"_fields_": fields})


@dataclass(frozen=True, slots=True)
class Variant:
    """What a kernel is compiled for: instructions that it does not have hold up nobody who waits for others.

    Attributes:
        bits: of a number of Z. ranks: columns of the factors of a segment, 8 or 16. tokens: 1, 2 or 4.
        bfloat: whether x is bfloat16, and not float16.
        matrices: of a launch, at most.
        entries: whether there may be single entries.
        wide: whether blocks may have more than 16 columns of the factors, as of a `Table`.
    """

    bits: int
    ranks: int
    tokens: int
    bfloat: bool
    matrices: int = 1
    entries: bool = True
    wide: bool = True

    def sizes(self) -> tuple[int, int, int]:
        """Bytes for Z, stages of the ring of signs, and bytes that are left for x."""
        z = self.ranks * self.bits * SLICE // 8  # of a token
        v = SLICE // 32 * 33 * 2 * self.ranks  # it lies where the Z of the last token comes
        space = -(-((self.tokens - 1) * z + max(z, v)) // 1024) * 1024
        stages = min(8, (_SHARED_BYTES - space) // _STAGE_BYTES)
        return space, stages, _SHARED_BYTES - space - stages * _STAGE_BYTES

    def source(self) -> str:
        """The source with all that it leaves open."""
        space, stages, x_space = self.sizes()
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
            "MATRICES": self.matrices,
            "WIDE": int(self.wide),
            "STAGES": stages,
            "Z_SPACE": space,
            "X_SPACE": x_space,
            "SHARE_FIELDS": SHARE_FIELDS,
            "WGMMA(acc, a, b, add)": product,
        }
        helpers = "helpers" if self.entries else "empty"
        return assemble(*_SOURCES, helpers, "multiply", bfloat=self.bfloat, **open_)


@cache
def kernel_for(variant: Variant, device: torch.device) -> Kernel:
    """The kernel, loaded on a device."""
    with torch.cuda.device(device):
        return Module(variant.source(), "sm_90a").kernel("multiply", _SHARED_BYTES)


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
    known = table.hopper
    if known is None or not takes(x, table):
        raise ValueError(f"the kernels do not take {x.dtype} for such a matrix: see `takes`")
    if known.launch is None:
        known.launch = Launch([table], known.shares, 1)
    known.launch.multiply(x, [bias], [out])


def multiply_together(
    x: torch.Tensor, together: Together, biases: Sequence[torch.Tensor | None], outs: Sequence[torch.Tensor]
) -> None:
    """The same for several matrices by the same x, in one launch; every one must be as `takes` wants it.

    Raises:
        ValueError: one of the tables is no more.
        DriverError: the kernel cannot be compiled or launched.
    """
    tables = together.tables
    if together.launch is None:
        together.launch = Launch(tables, together.shares, MOST)
    together.launch.multiply(x, biases, outs)


class Launch:
    """Launches for some tables, whose addresses stay: all that is the same for each is made once.

    Args:
        tables: of one matrix, or of several with one chain each. shares: what each program does.
        matrices: that the kernel takes at most.
    """

    def __init__(self, tables: Sequence[Table], shares: torch.Tensor, matrices: int) -> None:
        first, rows = tables[0], 0
        self._given, self._matrices = _given(matrices), matrices
        given = self._given()
        for number, table in enumerate(tables):
            given.matrices[number] = _described(table, rows)
            rows += table.rows
        given.common = _Common(
            *(None, shares.data_ptr(), None, rows, first.columns, sum(table.n_chains for table in tables)),
            *(max(table.capacity for table in tables), -(-first.columns // SLICE), SCALE_TYPES[first.col_scale.dtype]),
        )
        self._told, self._rows, self._ranks, self._programs = bytes(given), rows, first.ranks, len(shares) - 1
        self._few = min(table.hopper.few for table in tables if table.hopper is not None)
        self._entries = any(table.sparse for table in tables)
        self._wide = any(table.wide for table in tables)
        self._kernels: dict[tuple[int, torch.dtype], Kernel] = {}

    def multiply(self, x: torch.Tensor, biases: Sequence[torch.Tensor | None], outs: Sequence[torch.Tensor]) -> None:
        """See `multiply_few`; a bias and an output for each matrix."""
        biases = [b if b is None or b.dtype in SCALE_TYPES else b.float() for b in biases]
        with on_device(x.device):
            x, start = x.contiguous(), 0
            while start < len(x):
                stop = start + min(self._few, 1 << (len(x) - start).bit_length() - 1)
                self._launch(x[start:stop], biases, [out[start:stop] for out in outs])
                start = stop

    def _launch(self, x: torch.Tensor, biases: Sequence[torch.Tensor | None], outs: Sequence[torch.Tensor]) -> None:
        given = self._given.from_buffer_copy(self._told)
        given.common.x = x.data_ptr()
        given.common.sums = running_sums(len(x) * self._rows, x.device).data_ptr()
        for matrix, bias, out in zip(given.matrices, biases, outs, strict=False):
            matrix.y = out.data_ptr()
            if bias is not None:
                matrix.bias, matrix.bias_type = bias.data_ptr(), SCALE_TYPES[bias.dtype]
        kernel = self._kernels.get((len(x), x.dtype))
        if kernel is None:
            bfloat = x.dtype == torch.bfloat16
            variant = Variant(BITS[x.dtype], self._ranks, len(x), bfloat, self._matrices, self._entries, self._wide)
            kernel = self._kernels[len(x), x.dtype] = kernel_for(variant, x.device)
        kernel.launch((self._programs, 1, 1), _THREADS, given)


def _described(table: Table, first: int) -> _Matrix:
    """A matrix of a launch, but for y and bias; of all rows of it, so many come before its own."""
    known = table.hopper
    if known is None:
        raise ValueError("the table has nothing of what the kernels read")
    tensors = (table.col_scale, None, table.rows_of_table, table.counts, known.maps, known.row_values, None)
    return _Matrix(
        *(None if t is None else t.data_ptr() for t in tensors),
        *(table.rows, table.chain_rows, table.col_stride, table.capacity, 0, first),
    )
