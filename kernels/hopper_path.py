"""Every operation on compute capability 9.0: kernels of its own where they fit, and Triton's for everything else."""

from collections.abc import Sequence
from typing import Final

import torch

from . import dense, hopper, hopper_matrix, triton_path
from .hopper_rebuild import rebuild as rebuild_narrow
from .hopper_several import MOST, multiply_several
from .table import Table
from .together import Together
from .triton_path import rows

__all__ = ["linear", "rebuild", "rows", "takes_together", "together"]

FEW: Final = {8: 4, 16: 3}
"""Up to this number of tokens, by the columns of the factors, signs are multiplied as bits."""
SEVERAL: Final = MOST
"""From there on up to this number of tokens products of factors are multiplied; then W is made."""


def linear(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns]."""
    if len(x) <= FEW[table.ranks] and hopper.takes(x, table):
        hopper.multiply_few(x, table, bias, out)
    elif len(x) <= SEVERAL and hopper_matrix.takes(x.dtype, table):
        multiply_several(x, table, bias, out)
    elif len(x) <= triton_path.FEW:
        triton_path.linear(x, table, bias, out)
    else:
        triton_path.multiply_many(x, table, bias, out, rebuild)


def takes_together(x: torch.Tensor, matrices: Together) -> bool:
    """Whether `together` is for such an x [tokens, columns]."""
    return all(len(x) <= FEW[table.ranks] and hopper.takes(x, table) for table in matrices.tables)


def together(
    x: torch.Tensor, matrices: Together, biases: Sequence[torch.Tensor | None], outs: Sequence[torch.Tensor]
) -> None:
    """`linear` of several matrices for the same x, in one launch."""
    hopper.multiply_together(x, matrices, biases, outs)


def rebuild(table: Table, out: torch.Tensor, start: int = 0, stop: int | None = None) -> None:
    """Write W, or a part of its rows, to `out` [rows, columns]; see `dense.rebuild`."""
    make = rebuild_narrow if hopper_matrix.takes(out.dtype, table) else dense.rebuild
    make(table, out, start, stop)
