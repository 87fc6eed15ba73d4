"""What the kernels of `hopper_tile.cu` are told of a matrix, and their source."""

import ctypes
from importlib.resources import files
from typing import Final

import torch

from .table import FIELD_NAMES, FIELDS, SIGN8, Table

TYPES: Final = (torch.float16, torch.bfloat16)
"""Of x, y and W."""
SIDE: Final = 128
"""Rows and columns of a tile."""
THREADS: Final = 256
"""Of a program."""
SCALE_TYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Matrix(ctypes.Structure):
    """`Matrix` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row_scale", "col_scale", "table", "counts")),
        *((name, ctypes.c_int) for name in ("rows", "chain_rows", "columns", "col_stride", "capacity")),
        *((name, ctypes.c_int) for name in ("row_type", "col_type")),
    )


def describe(table: Table) -> Matrix:
    """The matrix of a table; the table must outlive what is launched with it."""
    tensors = (table.row_scale, table.col_scale, table.rows_of_table, table.counts)
    return Matrix(
        *(t.data_ptr() for t in tensors),
        *(table.rows, table.chain_rows, table.columns, table.col_stride, table.capacity),
        SCALE_TYPES[table.row_scale.dtype],
        SCALE_TYPES[table.col_scale.dtype],
    )


def takes(dtype: torch.dtype, table: Table) -> bool:
    """Whether the kernels are for a type, and for a matrix."""
    return dtype in TYPES and table.maps is not None


def source(part: str, dtype: torch.dtype, **open_: int) -> str:
    """The source of `hopper_{part}.cu` for a type, with all that it leaves open."""
    open_ |= {"BFLOAT": int(dtype == torch.bfloat16), "SIGN8": SIGN8, "FIELDS": FIELDS}
    open_ |= {name: number for number, name in enumerate(FIELD_NAMES)}
    defined = "\n".join(f"#define {name} {value}" for name, value in open_.items())
    texts = [files(__package__).joinpath(f"hopper_{name}.cu").read_text("utf-8") for name in ("values", "tile", part)]
    return "\n".join([defined, *texts])
