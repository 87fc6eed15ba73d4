"""W on compute capability 9.0: the kernel that makes it for products of many tokens, `hopper_rebuild.cu`."""

import ctypes
from functools import cache
from importlib.resources import files
from typing import Final

import torch

from .cuda_driver import Kernel, Module
from .dense import add_sparse
from .table import FIELD_NAMES, FIELDS, SIGN8, Table
from .tiles import on_device

TYPES: Final = (torch.float16, torch.bfloat16)
"""Of W. float32 is for `dense`, which multiplies exactly."""
_SIDE: Final = 128
"""Rows and columns of a tile, of which a program makes one."""
THREADS: Final = 256
"""Of a program."""
_SCALE_TYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _Arguments(ctypes.Structure):
    """`RebuildArgs` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_scale", "col_scale", "table", "counts", "w")),
        *((name, ctypes.c_int) for name in ("first_row", "stop_row", "rows", "chain_rows", "columns", "col_stride")),
        *((name, ctypes.c_int) for name in ("capacity", "row_type", "col_type")),
    )


def source(*, bfloat: bool) -> str:
    """The source with all that it leaves open."""
    open_ = {"BFLOAT": int(bfloat), "SIGN8": SIGN8, "FIELDS": FIELDS}
    open_ |= {name: number for number, name in enumerate(FIELD_NAMES)}
    defined = "\n".join(f"#define {name} {value}" for name, value in open_.items())
    texts = [files(__package__).joinpath(f"hopper_{part}.cu").read_text("utf-8") for part in ("values", "rebuild")]
    return "\n".join([defined, *texts])


@cache
def kernel_for(dtype: torch.dtype, device: torch.device) -> Kernel:
    """The kernel for W of a type, loaded on a device."""
    with torch.cuda.device(device):
        return Module(source(bfloat=dtype == torch.bfloat16), "sm_90a").kernel("rebuild")


def takes(dtype: torch.dtype, table: Table) -> bool:
    """Whether the kernel is for W of a type, and for a matrix."""
    return dtype in TYPES and table.maps is not None


def rebuild(table: Table, out: torch.Tensor, start: int = 0, stop: int | None = None) -> None:
    """Write W to `out` [rows, columns], summed in float32, of factors multiplied in half precision.

    Args and rounding are those of `dense.rebuild`.

    Raises:
        DriverError: the kernel cannot be compiled or launched.
    """
    stop = table.chain_rows if stop is None else stop
    tensors = (table.row_scale, table.col_scale, table.rows_of_table, table.counts, out)
    arguments = _Arguments(
        *(t.data_ptr() for t in tensors),
        *(start, stop, table.rows, table.chain_rows, table.columns, table.col_stride, table.capacity),
        _SCALE_TYPES[table.row_scale.dtype],
        _SCALE_TYPES[table.col_scale.dtype],
    )
    grid = (-(-table.columns // _SIDE), -(-(stop - start) // _SIDE), table.n_chains)
    kernel = kernel_for(out.dtype, out.device)
    with on_device(out.device):
        kernel.launch(grid, THREADS, arguments)
    add_sparse(table, out, start, stop)
