"""W on compute capability 9.0, for products of many tokens: `hopper_rebuild.cu`."""

import ctypes
from functools import cache

import torch

from .cuda_driver import Kernel, Module
from .dense import add_sparse
from .hopper_matrix import SIDE, THREADS, Matrix, describe, source
from .table import Table
from .tiles import on_device


class _Arguments(ctypes.Structure):
    """`RebuildArgs` of the source."""

    _fields_ = (
        ("matrix", Matrix),
        ("w", ctypes.c_void_p),
        ("first_row", ctypes.c_int),
        ("stop_row", ctypes.c_int),
    )


@cache
def kernel_for(dtype: torch.dtype, device: torch.device) -> Kernel:
    """The kernel for W of a type, loaded on a device."""
    with torch.cuda.device(device):
        return Module(source("rebuild", dtype), "sm_90a").kernel("rebuild")


def rebuild(table: Table, out: torch.Tensor, start: int = 0, stop: int | None = None) -> None:
    """Write W to `out` [rows, columns], summed in float32, of factors multiplied in half precision.

    Args and rounding are those of `dense.rebuild`, for a type and a table that `hopper_matrix.takes`.

    Raises:
        DriverError: the kernel cannot be compiled or launched.
    """
    stop = table.chain_rows if stop is None else stop
    arguments = _Arguments(describe(table), out.data_ptr(), start, stop)
    grid = (-(-table.columns // SIDE), -(-(stop - start) // SIDE), table.n_chains)
    kernel = kernel_for(out.dtype, out.device)
    with on_device(out.device):
        kernel.launch(grid, THREADS, arguments)
    add_sparse(table, out, start, stop)
