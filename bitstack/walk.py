"""Choosing the codes of a block along the Hessian: each column's error is pushed into the columns to come.

The order of columns and the feedback are those of GPTQ (arXiv 2210.17323, §3): the columns that matter most go first,
and what a column's rounding costs is made good by the rest through the Cholesky factor of the inverse Hessian. The
quantiser is that of this format: 2 to the power of ``bits`` evenly spaced values around zero, whose outermost plane has
the low-rank magnitude of the block and every further plane half of the one before.
"""

from dataclasses import dataclass
from typing import Final

import torch

from bitstack import kernels

#: Added to the diagonal of the Hessian, relative to its mean, before it is inverted.
DAMPING: Final = 0.02
#: Columns whose errors are pushed on at once.
WIDTH: Final = 64
_SMALLEST: Final = 1e-30


@dataclass(frozen=True, slots=True)
class Walker:
    """What the walk over a stack of B matrices with N columns needs.

    Attributes:
        order: int64 [B, N], the columns in the order in which they are walked; or [1, N], for all matrices alike.
        factor: float32 [B, N, N] or [1, N, N], upper Cholesky factor of the inverse damped Hessian in that order.
    """

    order: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def along(cls, hessian: torch.Tensor) -> "Walker":
        """For Hessians [B, N, N], the second moments of the inputs; [1, N, N] for matrices that share theirs."""
        order = torch.argsort(hessian.diagonal(dim1=-2, dim2=-1), dim=-1, descending=True, stable=True)
        ordered = hessian.gather(1, order[:, :, None].expand_as(hessian))
        ordered = ordered.gather(2, order[:, None, :].expand_as(hessian))
        return cls(order, torch.stack([inverse_factor(h) for h in ordered]))

    def select(self, which: list[int]) -> "Walker":
        """For some of the matrices."""
        return self if len(self.order) == 1 else Walker(self.order[which], self.factor[which])

    def codes(self, target: torch.Tensor, magnitude: torch.Tensor, bits: int) -> torch.Tensor:
        """Codes for ``target`` [B, M, N] in steps of a ``magnitude`` of the same shape: see `nearest`; int8."""
        order = self.order[:, None, :].expand_as(target)
        # Columns first, so that a column of all matrices is contiguous.
        left = target.gather(2, order).permute(2, 0, 1).contiguous()
        step = magnitude.gather(2, order).permute(2, 0, 1).contiguous()
        step = torch.where(step.abs() < _SMALLEST, _SMALLEST, step)
        columns = len(left)
        codes = torch.empty(left.shape, dtype=torch.int8, device=left.device)
        errors = torch.empty(WIDTH, *left.shape[1:], device=left.device)
        for start in range(0, columns, WIDTH):
            stop = min(start + WIDTH, columns)
            part, made = slice(start, stop), errors[: stop - start]
            kernels.walk_columns(left[part], step[part], self.factor[:, part, part], codes[part], made, bits)
            if stop < columns:
                left[stop:] -= (self.factor[:, part, stop:].mT @ made.transpose(0, 1)).transpose(0, 1)
        out = torch.empty_like(target, dtype=torch.int8)
        return out.scatter_(2, order, codes.permute(1, 2, 0))


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor R of the inverse of a damped Hessian [N, N], H⁻¹ = RᵀR, float32.

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


def nearest(target: torch.Tensor, magnitude: torch.Tensor, bits: int) -> torch.Tensor:
    """The code of each element by itself: odd whole numbers from 1 - 2^bits to 2^bits - 1, int8.

    A code c stands for c · magnitude · 2^(1 - bits); its sign is the sign of the block's first plane.
    """
    step = torch.where(magnitude.abs() < _SMALLEST, _SMALLEST, magnitude)
    return _round(target / step, bits).to(torch.int8)


def _round(ratio: torch.Tensor, bits: int) -> torch.Tensor:
    top = 2.0**bits - 1
    code: torch.Tensor = ratio.mul_(2.0 ** (bits - 2)).floor_().mul_(2).add_(1).clamp_(-top, top)
    return code


def first_planes(codes: torch.Tensor, bits: int, planes: int) -> torch.Tensor:
    """The codes that the first ``planes`` of ``bits`` planes stand for, in the same steps."""
    if planes == bits:
        return codes
    width = 2 ** (bits - planes)
    # Floor division by a power of two, of negative numbers too, is a shift.
    first: torch.Tensor = ((codes >> (bits - planes + 1)) * 2 + 1) * width
    return first
