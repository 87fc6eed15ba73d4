"""What an error in a weight costs: the estimated change of the loss, and the scales that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from .collect import Statistics
from .scales import Scales
from .targets import Target
from .walk import Walker

#: What every row of a token matrix weighs at least, relative to the mean.
FREQUENCY_FLOOR: Final = 1e-3


class Measure(Protocol):
    """The cost of errors in a stack of B matrices [M, N]."""

    def walker(self) -> Walker:
        """What the walk of the codes goes along."""
        ...

    def rows(self, error: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """Estimated loss a token for each row of an ``error`` [B, m, N]: float64 [B, m].

        Args:
            chosen: int64 [m], the rows of the matrices that the error is of; None stands for all.
        """
        ...

    def select(self, which: list[int]) -> "Measure":
        """The measure of some of the matrices."""
        ...


@dataclass(frozen=True, slots=True)
class LinearMeasure:
    """Of linear layers: for row i, output[i] · (E H Eᵀ)[i, i].

    Attributes:
        hessian: float32 [B, N, N], mean of x·xᵀ over the tokens of the calibration; [1, N, N] if all share one.
        output: float64 [B, M], mean squared gradient of the loss at each output.
    """

    hessian: torch.Tensor
    output: torch.Tensor

    def walker(self) -> Walker:
        """See `Measure.walker`."""
        return Walker.along(self.hessian)

    def rows(self, error: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """See `Measure.rows`."""
        output = self.output if chosen is None else self.output[:, chosen]
        return ((error @ self.hessian) * error).sum(-1).double() * output

    def select(self, which: list[int]) -> "LinearMeasure":
        """See `Measure.select`."""
        return LinearMeasure(self.hessian if len(self.hessian) == 1 else self.hessian[which], self.output[which])


@dataclass(frozen=True, slots=True)
class TokenMeasure:
    """Of embeddings and output heads: for row i the sum over all uses of weight[i] · (E A Eᵀ)[i, i].

    As a head, the weight is the mean squared gradient of the logit and A the second moment of the hidden states; as an
    embedding, the frequency of the token and the second moment of the gradient at its output.

    Attributes:
        uses: for each use the row weights, float64 [B, M], and the matrix A, float32 [N, N].
    """

    uses: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def walker(self) -> Walker:
        """Along the sum of all uses, weighted by the rows of each group."""
        return Walker.along(torch.stack([w.sum(1).float()[:, None, None] * a for w, a in self.uses]).sum(0))

    def rows(self, error: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """See `Measure.rows`."""
        total = torch.zeros(error.shape[:2], dtype=torch.float64, device=error.device)
        for weights, matrix in self.uses:
            w = weights if chosen is None else weights[:, chosen]
            total += ((error @ matrix) * error).sum(-1).double() * w
        return total

    def select(self, which: list[int]) -> "TokenMeasure":
        """See `Measure.select`."""
        return TokenMeasure(tuple((w[which], a) for w, a in self.uses))


def linear_scales(hessian: torch.Tensor, output: torch.Tensor) -> Scales:
    """Columns by the rms of the input (of a Hessian [N, N]), rows by the rms of the output gradient [M]."""
    return Scales.of(output.sqrt(), hessian.diagonal().double().sqrt())


def token_scales(uses: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Scales:
    """Roots of the row and column means of the diagonal Fisher information of all uses (row weights [V], A [D, D])."""
    diagonals = [(w.double(), a.diagonal().double()) for w, a in uses]
    rows = torch.stack([w * d.mean() for w, d in diagonals]).sum(0)
    columns = torch.stack([d * w.mean() for w, d in diagonals]).sum(0)
    return Scales.of(rows.sqrt(), columns.sqrt())


def with_floor(weights: torch.Tensor) -> torch.Tensor:
    """Row weights of a use, none below a share of their mean: a token that the text lacks will come one day."""
    return weights + FREQUENCY_FLOOR * weights.mean()


def whole_loss(weight: torch.Tensor, target: Target, statistics: Statistics) -> torch.Tensor:
    """The estimated loss of a target [M, N] that is all zeros."""
    if target.by_token:
        uses = tuple((w[None].to(weight.device), a.to(weight.device)) for w, a in statistics.token[target.name].terms)
        return TokenMeasure(uses).rows(weight[None]).sum()
    own = statistics.linear[target.name]
    measure = LinearMeasure(own.hessian[None].to(weight.device), own.output[None].to(weight.device))
    return measure.rows(weight[None]).sum()
