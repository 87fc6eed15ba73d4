"""y = x·Wᵀ for several tokens on compute capability 9.0: `hopper_several.cu`."""

import ctypes
from typing import Final

import torch

from .devices import multiprocessors, on_device
from .hopper_matrix import SIDE, THREADS, TILE, Matrix, describe, kernel_for, share_out
from .hopper_types import SCALE_TYPES
from .table import Table

MOST: Final = 16
"""Tokens that one launch takes."""
_SHARE_BITS: Final = 2
"""Of the number of threads that add up a row with single entries."""


class _Arguments(ctypes.Structure):
    """`SeveralArgs` of the source."""

    _fields_ = (
        ("matrix", Matrix),
        *((name, ctypes.c_void_p) for name in ("x", "bias", "partial", "y")),
        *((name, ctypes.c_int) for name in ("tokens", "parts", "bias_type", "share_bits")),
    )


def multiply_several(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns], by up to `MOST` tokens at a time.

    Products of U and V, and of x and the scales of columns, are rounded to half precision. Capturable in a CUDA graph:
    what is resident is read from the table when the graph is replayed. All sums have one order, so that the same input
    gives the same bits.

    Raises:
        DriverError: the kernels cannot be compiled or launched.
    """
    x = x.contiguous()
    if bias is not None and bias.dtype not in SCALE_TYPES:
        bias = bias.float()
    strips = -(-table.chain_rows // SIDE)
    processors = multiprocessors(x.device)
    matrix, bits = describe(table), _SHARE_BITS if table.sparse else 0
    for start in range(0, len(x), MOST):
        part, y = x[start : start + MOST], out[start : start + MOST]
        tokens = 8 if len(part) <= 8 else MOST
        parts, shared_bytes = share_out(
            table.columns, strips * table.n_chains, processors, table.capacity, tokens * (2 * TILE + 64)
        )
        multiply, add_up = (
            kernel_for("several", name, x.dtype, tokens, x.device) for name in ("multiply_several", "add_up")
        )
        partial = torch.empty(parts * len(part) * table.rows, dtype=torch.float32, device=x.device)
        arguments = _Arguments(
            matrix,
            *(None if t is None else t.data_ptr() for t in (part, bias, partial, y)),
            len(part),
            parts,
            0 if bias is None else SCALE_TYPES[bias.dtype],
            bits,
        )
        with on_device(x.device):
            multiply.launch((parts, strips, table.n_chains), THREADS, arguments, shared_bytes)
            add_up.launch((-(-(table.rows << bits) // THREADS), len(part), 1), THREADS, arguments, 0)
