"""What `hopper` knows of each row: a bound on what it adds up to, and its scale. Written when a matrix changes."""

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Final

import torch

from .cuda_driver import Kernel, Module
from .devices import on_device
from .hopper_source import assemble
from .hopper_types import SCALE_TYPES

if TYPE_CHECKING:
    from .hopper_table import HopperTable
    from .table import Table

_THREADS: Final = 256


class _Arguments(ctypes.Structure):
    """`ReachArgs` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("table", "counts", "col_largest", "row_scale", "row_values")),
        *((name, ctypes.c_int) for name in ("row_type", "tile")),
        *((name, ctypes.c_int) for name in ("chain", "rows", "chain_rows", "columns", "capacity", "ranks")),
    )


def source() -> str:
    """The source with all that it leaves open."""
    return assemble("values", "reach")


@cache
def kernel_for(device: torch.device) -> Kernel:
    """The kernel, loaded on a device."""
    with torch.cuda.device(device):
        return Module(source(), "sm_90a").kernel("reach")


def write_row_values(table: "Table", known: "HopperTable", number: int, rows: int) -> None:
    """Write `known.row_values` of the rows of a chain, from what the table holds by now.

    Args:
        table: of the matrix. known: of the table.
        number: of the chain. rows: of it.

    Raises:
        DriverError: the kernel cannot be compiled or launched.
    """
    from .hopper_table import TILE

    tensors = (table.rows_of_table, table.counts, known.col_largest, table.row_scale, known.row_values)
    sizes = (number, rows, table.chain_rows, table.columns, table.capacity, table.ranks)
    with on_device(table.device):
        arguments = _Arguments(*(t.data_ptr() for t in tensors), SCALE_TYPES[table.row_scale.dtype], TILE, *sizes)
        kernel_for(table.device).launch((-(-rows // _THREADS), 1, 1), _THREADS, arguments)
