"""The decomposition of the BitStack paper as published (arXiv 2410.23918, §2.2 and §2.3), to compare with.

The weight is scaled by the activations, column by column; then each level takes the signs of the residual and the
best rank-k approximation of its absolute values, and leaves the rest to the next one. Without absolute values (the
paper's ablation) a level is the plain truncated SVD of the residual, of the bytes that signs and factors would take.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bsformat import Form, payload
from bsformat.registry import DTYPE_BYTES

from .emit import pack_signs
from .lowrank import low_rank, store
from .recipe import Options
from .scales import Scales


@dataclass(frozen=True, slots=True)
class PaperLevel:
    """One block, ready to be stored, and the matrix it stands for (float32 [M, N], scales applied)."""

    form: Form
    data: bytes
    values: torch.Tensor


def chosen_scales(scales: Scales, which: str) -> Scales:
    """The scales that a recipe asks for: ``row_column`` as they are, ``column`` only, or ``none``; else ones."""
    row = scales.row if which == "row_column" else torch.ones_like(scales.row)
    return Scales(row, scales.col if which != "none" else torch.ones_like(scales.col))


def chain(weight: torch.Tensor, scales: Scales, options: Options, *, seed: int) -> Iterator[PaperLevel]:
    """The levels of one chain, one after the other.

    Args:
        weight: float32 [M, N].
        options: `Options.svd` says how a low-rank part is found, `Options.absolute` whether signs are taken apart.
        seed: of the randomised SVD; the same seed gives the same blocks.
    """
    row, col = scales.row.float()[:, None], scales.col.float()[None, :]
    rest = weight / col / row
    for level, rank in enumerate(options.ranks):
        if options.absolute:
            rank = min(rank, *weight.shape)
            positive = rest >= 0
            target, kind, signs = rest.abs(), "sign", pack_signs(positive)
        else:
            rank = rank_of_equal_bytes(weight.shape[0], weight.shape[1], rank, options.factors[0])
            target, kind, signs = rest, "lowrank", np.empty(0, np.uint8)
        u, s, v = exact_svd(target, rank) if options.svd == "exact" else low_rank(target, rank, seed + level)
        factors = store(u, s, v, options.factors[0])
        ones = torch.ones_like
        values = factors.product(ones(row[:, 0]), ones(col[0]))
        if options.absolute:
            values = torch.where(positive, values, -values)
        rest -= values
        data = payload.join(signs, *factors.arrays())
        yield PaperLevel(Form(kind, rank=rank, factors=options.factors[0]), data, values * row * col)


def exact_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first singular triplets U [M, rank], s [rank], V [N, rank]."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank].T


def rank_of_equal_bytes(rows: int, columns: int, rank: int, factors: str) -> int:
    """The rank of the largest low-rank block that is no larger than a sign block of ``rank``; at least 1."""
    per_rank = (rows + columns) * DTYPE_BYTES[factors] + (4 if factors == "F8_E4M3" else 0)
    size = rows * ((columns + 7) // 8) + min(rank, rows, columns) * per_rank
    return max(1, min(size // per_rank, rows, columns))
