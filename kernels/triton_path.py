"""Every operation with Triton: which kernel runs for how many tokens."""

from collections.abc import Callable
from typing import Final

import torch

from .decode import multiply_few
from .dense import rebuild, rows
from .table import Table

__all__ = ["linear", "rebuild", "rows"]

FEW: Final = 4
"""Up to this number of tokens signs are multiplied as they are; from there on W is rebuilt."""
WORKSPACE: Final = 1 << 26
"""Elements of W that are held at a time, unless one tile of rows is larger."""
TILE: Final = 256
"""Rows of W that are held at a time come in multiples of this."""


def linear(x: torch.Tensor, table: Table, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write x·Wᵀ + bias to `out` [tokens, rows] for x [tokens, columns]."""
    if len(x) <= FEW:
        multiply_few(x, table, bias, out)
    else:
        multiply_many(x, table, bias, out)


def multiply_many(
    x: torch.Tensor,
    table: Table,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    rebuild: Callable[..., None] = rebuild,
) -> None:
    """The same by W, made in large pieces by ``rebuild``."""
    # The GPU multiplies half precision with float32 sums; the CPU, where this runs interpreted, need not.
    dtype = x.dtype if x.device.type == "cuda" else torch.float32
    x = x.to(dtype)
    step = table.rows
    if table.n_chains == 1:
        step = min(step, max(TILE, WORKSPACE // table.columns // TILE * TILE))
    w = torch.empty(step, table.columns, dtype=dtype, device=x.device)
    for start in range(0, table.rows, step):
        stop = min(start + step, table.rows)
        part = w[: stop - start]
        if table.n_chains == 1:
            rebuild(table, part, start, stop)
        else:
            rebuild(table, part)
        if dtype == out.dtype:
            torch.mm(x, part.T, out=out[:, start:stop])
        else:
            out[:, start:stop] = x @ part.T
    if bias is not None:
        out += bias
