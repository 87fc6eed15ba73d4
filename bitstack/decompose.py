"""One matrix as a chain of residual blocks: signs and a low-rank magnitude each (BitStack, arXiv 2410.23918, §3).

Every level aims at what the levels before it left of W. Its magnitude is the best rank-k approximation of the
residual's absolute values under the row and column scales, stored in 8 or 16 bits, and all arithmetic after that
uses the stored values, so that what is measured here is what a reader rebuilds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from bsformat import Form, payload
from bsformat.errors import ModelError

#: Floors of the scales relative to their mean: a dead channel must not blow up its reciprocal.
COLUMN_FLOOR: Final = 1e-3
ROW_FLOOR: Final = 0.05
#: Added to the diagonal of the Hessian, relative to its mean, before it is inverted.
DAMPING: Final = 0.05
#: Columns whose errors are pushed on at once.
WALK_WIDTH: Final = 64
#: Largest finite value of e4m3.
E4M3_MAX: Final = 448.0
_OVERSAMPLE: Final = 8
_POWER_ITERATIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Options:
    """How chains are made.

    Attributes:
        ranks: rank of the factors at each level; its length is the number of levels.
        factors: element type of the factors, ``F8_E4M3`` or ``F16``.
        stretch: the magnitudes are made larger by this, since a sum of shrinking levels never reaches the tails.
        walk: choose signs column by column and push each error into the columns to come (as GPTQ does).
    """

    ranks: tuple[int, ...]
    factors: str = "F8_E4M3"
    stretch: float = 1.1
    walk: bool = True


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales of a matrix, as stored: W = diag(row) · (sum of blocks) · diag(col).

    Attributes:
        row: float16 [M]. col: float16 [N]. Reciprocals of how much the loss feels each row and column.
    """

    row: torch.Tensor
    col: torch.Tensor

    @classmethod
    def of(cls, row_weight: torch.Tensor, col_weight: torch.Tensor) -> "Scales":
        """From root-mean-square weights of rows [M] and columns [N]."""
        return cls(_reciprocal(row_weight, ROW_FLOOR), _reciprocal(col_weight, COLUMN_FLOOR))


def _reciprocal(weight: torch.Tensor, floor: float) -> torch.Tensor:
    mean = weight.double().mean()
    relative = weight.double() / mean if mean > 0 else torch.ones_like(weight, dtype=torch.float64)
    # float16 holds the reciprocals of all weights from the floor up to 2^14 times the mean.
    stored: torch.Tensor = relative.clamp(floor, 2.0**14).reciprocal().half()
    return stored


@dataclass(frozen=True, slots=True)
class SignLevel:
    """One block, ready to be stored, and the matrix it stands for (float32 [M, N], scales applied)."""

    form: Form
    data: bytes
    values: torch.Tensor


def check_finite(weight: torch.Tensor, name: str) -> None:
    """Refuse a weight with NaN or infinity, by name.

    Raises:
        ModelError: reason ``weight-values``.
    """
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise ModelError(f"{name} has {bad} values that are NaN or infinite", reason="weight-values")


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor R of the inverse of the damped Hessian, H⁻¹ = RᵀR, float32 [N, N].

    With J the reversal of rows and columns and JHJ = LLᵀ, R is the inverse of the upper triangular JLJ: one
    factorisation and one triangular inverse, where inverting H first would cost thrice that.
    """
    damped = hessian.double().clone()
    mean = damped.diagonal().mean()
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    eye = torch.eye(len(upper), dtype=torch.float64, device=upper.device)
    factor: torch.Tensor = torch.linalg.solve_triangular(upper, eye, upper=True)
    return factor.float()


def chain(
    weight: torch.Tensor, scales: Scales, options: Options, *, seed: int, inverse: torch.Tensor | None = None
) -> Iterator[SignLevel]:
    """The levels of one chain, one after the other.

    Args:
        weight: float32 [M, N].
        seed: of the randomised SVD; the same seed gives the same blocks.
        inverse: `inverse_factor` of the layer's Hessian; signs are walked along it if there is one.
    """
    residual = weight.clone()
    row, col = scales.row.float(), scales.col.float()
    for level, rank in enumerate(options.ranks):
        rank = min(rank, *weight.shape)
        weighted = residual.abs() / col[None, :] / row[:, None]
        u, v, scale = _factors(weighted, rank, options, seed + level)
        magnitude = _product(u, v, scale, row, col)
        if inverse is not None and options.walk:
            positive = _walk(residual, magnitude, inverse)
        else:
            positive = residual * magnitude >= 0
        values = torch.where(positive, magnitude, -magnitude)
        data = payload.join(
            pack_signs(positive).cpu().numpy(),
            _raw(u),
            _raw(v),
            None if scale is None else scale.cpu().numpy(),
        )
        residual -= values
        yield SignLevel(Form("sign", rank=rank, factors=options.factors), data, values)


def _factors(
    weighted: torch.Tensor, rank: int, options: Options, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    u, s, v = low_rank(weighted, rank, seed)
    root = (options.stretch * s).sqrt()
    u, v = u * root, v * root
    if options.factors == "F16":
        return u.half(), v.half(), None
    su, sv = (f.abs().amax(0).clamp_min(1e-30) / E4M3_MAX for f in (u, v))
    return (u / su).to(torch.float8_e4m3fn), (v / sv).to(torch.float8_e4m3fn), (su * sv).contiguous()


def low_rank(matrix: torch.Tensor, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first singular triplets U [M, rank], s [rank], V [N, rank] by randomised subspace iteration.

    Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4. The same seed gives the same result, from any thread.
    """
    size = min(rank + _OVERSAMPLE, *matrix.shape)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], size, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vt[:rank].T


def _product(
    u: torch.Tensor, v: torch.Tensor, scale: torch.Tensor | None, row: torch.Tensor, col: torch.Tensor
) -> torch.Tensor:
    left = u.float() if scale is None else u.float() * scale
    return (left * row[:, None]) @ (v.float() * col[:, None]).T


def _raw(factor: torch.Tensor) -> "payload.Array":
    stored = factor.contiguous().cpu()
    return stored.view(torch.uint8).numpy() if stored.itemsize == 1 else stored.numpy()


def pack_signs(positive: torch.Tensor) -> torch.Tensor:
    """Bits of a bool matrix [M, N] as uint8 [M, ceil(N / 8)], least significant bit first, padding bits zero."""
    rows, columns = positive.shape
    padded = torch.nn.functional.pad(positive, (0, -columns % 8)).view(rows, -1, 8).to(torch.uint8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=positive.device)).sum(-1, dtype=torch.uint8)


def _walk(residual: torch.Tensor, magnitude: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Signs column by column, each error pushed into the columns to come: bool [M, N].

    Works on transposed copies, so that a column is contiguous.
    """
    target, size = residual.T.contiguous(), magnitude.T.contiguous()
    positive = torch.empty(target.shape, dtype=torch.bool, device=target.device)
    columns = len(target)
    reciprocal = (1.0 / inverse.diagonal()).tolist()
    errors = torch.empty(WALK_WIDTH, target.shape[1], device=target.device)
    for start in range(0, columns, WALK_WIDTH):
        stop = min(start + WALK_WIDTH, columns)
        for j in range(start, stop):
            aim, step = target[j], size[j]
            up = torch.ge(aim * step, 0, out=positive[j])
            error = torch.sub(aim, torch.where(up, step, -step), out=errors[j - start]).mul_(reciprocal[j])
            if j + 1 < stop:
                target[j + 1 : stop].addr_(inverse[j, j + 1 : stop], error, alpha=-1)
        if stop < columns:
            target[stop:].addmm_(inverse[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return positive.T.contiguous()
