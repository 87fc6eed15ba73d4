"""Low-rank magnitudes: the factors of a block, as they are stored."""

from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt
import torch

#: Largest finite value of e4m3.
E4M3_MAX: Final = 448.0
_OVERSAMPLE: Final = 8
_POWER_ITERATIONS: Final = 3
#: Keeps a rank-deficient Gram matrix factorable, relative to its mean diagonal.
_GRAM_FLOOR: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Factors:
    """U·diag(scale)·Vᵀ as a block stores it.

    Attributes:
        u, v: float8_e4m3fn or float16 [M, k] and [N, k].
        scale: float32 [k] with 8-bit factors, else None.
    """

    u: torch.Tensor
    v: torch.Tensor
    scale: torch.Tensor | None

    def product(self, row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
        """The matrix they stand for under row scales [M] and column scales [N], float32 [M, N]."""
        left = self.u.float() if self.scale is None else self.u.float() * self.scale
        return (left * row[:, None]) @ (self.v.float() * col[:, None]).T

    def arrays(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None]:
        """U, V and scale as `bsformat.payload.join` takes them."""
        u, v = (_array(factor) for factor in (self.u, self.v))
        return u, v, None if self.scale is None else self.scale.cpu().numpy()

    def stretched(self, by: float) -> "Factors":
        """The factors of a magnitude ``by`` times as large."""
        if self.scale is not None:
            return Factors(self.u, self.v, self.scale * by)
        root = by**0.5
        return Factors((self.u.float() * root).half(), (self.v.float() * root).half(), None)


def _array(factor: torch.Tensor) -> npt.NDArray[Any]:
    kept = factor.cpu().contiguous()
    array: npt.NDArray[Any] = kept.view(torch.uint8).numpy() if kept.itemsize == 1 else kept.numpy()
    return array


def store(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, factors: str) -> Factors:
    """Singular triplets U [M, k], s [k], V [N, k] in the type in which a file keeps them."""
    root = s.sqrt()
    u, v = u * root, v * root
    if factors == "F16":
        return Factors(u.half(), v.half(), None)
    su, sv = (f.abs().amax(0).clamp_min(1e-30) / E4M3_MAX for f in (u, v))
    return Factors((u / su).to(torch.float8_e4m3fn), (v / sv).to(torch.float8_e4m3fn), (su * sv).contiguous())


def low_rank(matrices: torch.Tensor, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first singular triplets of a stack of matrices [..., M, N]: U [..., M, k], s [..., k], V [..., N, k].

    Randomised subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4), with k the smaller of
    ``rank`` and the sides. The same seed gives the same result, from any thread and for any number of matrices.
    """
    rows, columns = matrices.shape[-2:]
    rank, size = min(rank, rows, columns), min(rank + _OVERSAMPLE, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(columns, size, generator=generator).to(matrices.device)
    basis = _orthonormal(matrices @ start)
    for _ in range(_POWER_ITERATIONS):
        basis = _orthonormal(matrices @ _orthonormal(matrices.mT @ basis))
    # In float64, so that squares of tiny weights do not vanish.
    small = (basis.mT @ matrices).double()
    # Of the small Gram matrix: batched, and two orders of magnitude less work than a decomposition of `small`.
    values, vectors = torch.linalg.eigh(small @ small.mT)
    values, vectors = values.flip(-1)[..., :rank], vectors.flip(-1)[..., :rank]
    singular = values.clamp_min(0).sqrt()
    right = (small.mT @ vectors) / singular.clamp_min(1e-150)[..., None, :]
    return basis @ vectors.float(), singular.float(), right.float()


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the span of [..., M, k], by two rounds of Cholesky QR in float64."""
    basis = columns.double()
    for _ in range(2):
        gram = basis.mT @ basis
        mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
        gram.diagonal(dim1=-2, dim2=-1).add_((_GRAM_FLOOR * mean)[..., None])
        factor = torch.linalg.cholesky(gram)
        basis = torch.linalg.solve_triangular(factor, basis.mT, upper=False).mT
    return basis.float()
