"""Sparse blocks with PyTorch alone. Every sum has one order, on every device: no entry races with another."""

from itertools import pairwise
from typing import Final

import torch
from torch.nn import functional

from .float8 import to_float
from .sparse import SparseBlock, unsigned

ENTRIES: Final = 1 << 18
"""Entries that are converted at a time, unless the rows are very unequal; each takes 24 bytes of workspace."""


def add_products(x: torch.Tensor, block: SparseBlock, y: torch.Tensor) -> None:
    """Add Σ_entries of each row of scale · value · x[:, column] to `y`, float32 [rows, tokens].

    Args:
        x: float32 [columns, tokens], contiguous.
    """
    if not block.entries:
        return
    starts = block.row_starts()
    step = max(1, block.rows * ENTRIES // block.entries)
    bounds = [*starts[: block.rows : step].tolist(), block.entries]
    for number, (first, last) in enumerate(pairwise(bounds)):
        rows = slice(number * step, min(number * step + step, block.rows))
        # A bag a row; each is summed by itself, in the order of its entries.
        y[rows] += functional.embedding_bag(
            unsigned(block.indices[first:last]),
            x,
            starts[rows] - first,
            mode="sum",
            per_sample_weights=to_float(block.values[first:last]) * block.scale,
        )


def add_entries(block: SparseBlock, starts: torch.Tensor, start: int, w: torch.Tensor) -> None:
    """Add the entries of the rows from `start` on to `w`, float32 [rows of the tile, columns], contiguous.

    Args:
        starts: `block.row_starts()`, made once for all tiles.
    """
    own = starts[start : start + len(w) + 1]
    first, last = own[[0, -1]].tolist()
    if first == last:
        return
    row = torch.arange(len(w), device=w.device).repeat_interleave(own.diff(), output_size=last - first)
    place = row * block.columns + unsigned(block.indices[first:last])
    # No place occurs twice, so the order of the additions does not matter.
    w.view(-1).index_add_(0, place, to_float(block.values[first:last]) * block.scale)
