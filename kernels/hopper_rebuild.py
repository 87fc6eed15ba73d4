"""W on compute capability 9.0, for products of many tokens: `hopper_rebuild.cu`."""

import ctypes

import torch

from .devices import multiprocessors, on_device
from .hopper_matrix import SIDE, THREADS, TILE, Matrix, describe, kernel_for, share_out
from .table import Table


class _Arguments(ctypes.Structure):
    """`RebuildArgs` of the source."""

    _fields_ = (
        ("matrix", Matrix),
        ("w", ctypes.c_void_p),
        ("first_row", ctypes.c_int),
        ("stop_row", ctypes.c_int),
    )


def rebuild(table: Table, out: torch.Tensor, start: int = 0, stop: int | None = None) -> None:
    """Write W to `out` [rows, columns], of factors multiplied, and segments summed, in half precision.

    Rounded once, and once more for each sparse block where it has an entry.

    Args are those of `dense.rebuild`, for a type and a table that `hopper_matrix.takes`.

    Raises:
        DriverError: the kernel cannot be compiled or launched.
    """
    stop = table.chain_rows if stop is None else stop
    arguments = _Arguments(describe(table), out.data_ptr(), start, stop)
    strips = -(-(stop - start) // SIDE)
    programs = strips * table.n_chains
    parts, shared_bytes = share_out(table.columns, programs, multiprocessors(out.device), table.capacity, 4 * TILE)
    kernel = kernel_for("rebuild", "rebuild", out.dtype, 0, out.device)
    with on_device(out.device):
        kernel.launch((parts, strips, table.n_chains), THREADS, arguments, shared_bytes)
