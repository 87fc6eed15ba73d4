"""What an error in a weight costs: the estimated change of the loss, and the scales that follow from it."""

from dataclasses import dataclass
from typing import Protocol

import torch

from .calibrate import LinearStatistics, TokenStatistics
from .decompose import Scales, inverse_factor

#: Share of the mean Fisher weight that every element of a token matrix has at least.
_FISHER_FLOOR = 1e-3


class Measure(Protocol):
    """The cost of errors in one matrix [M, N]."""

    def scales(self) -> Scales:
        """Row and column scales."""
        ...

    def inverse(self) -> torch.Tensor | None:
        """What the sign walk goes along (`decompose.inverse_factor`), or None."""
        ...

    def loss(self, error: torch.Tensor, first_row: int) -> float:
        """Estimated loss a token for an ``error`` (float32 [m, N]) in rows from ``first_row``."""
        ...


@dataclass(slots=True)
class LinearMeasure:
    """Of a linear layer: Σ over rows i of g2[i] · (E H Eᵀ)[i, i]."""

    statistics: LinearStatistics

    def scales(self) -> Scales:
        """Columns by the rms of the input, rows by the rms of the output gradient."""
        return Scales.of(self.statistics.output.sqrt(), self.statistics.hessian.diagonal().double().sqrt())

    def inverse(self) -> torch.Tensor:
        """See `decompose.inverse_factor`."""
        return inverse_factor(self.statistics.hessian)

    def loss(self, error: torch.Tensor, first_row: int) -> float:
        """See `Measure.loss`."""
        rows = ((error @ self.statistics.hessian) * error).sum(1).double()
        return float(rows @ self.statistics.output[first_row : first_row + len(error)])


@dataclass(slots=True)
class TokenMeasure:
    """Of an embedding or output head: Σ over elements of F · E², F the diagonal Fisher information of all uses."""

    statistics: TokenStatistics

    def scales(self) -> Scales:
        """Roots of the row and column means of the Fisher information."""
        rows = sum(r * c.mean() for r, c in self.statistics.terms) + self._floor()
        columns = sum(c * r.mean() for r, c in self.statistics.terms) + self._floor()
        return Scales.of(torch.as_tensor(rows).sqrt(), torch.as_tensor(columns).sqrt())

    def inverse(self) -> None:
        """Columns are taken as independent: nothing to walk along."""

    def loss(self, error: torch.Tensor, first_row: int) -> float:
        """See `Measure.loss`."""
        squares = error.square()
        total = float(squares.sum().double()) * self._floor()
        for rows, columns in self.statistics.terms:
            by_row = squares @ columns.float()
            total += float(by_row.double() @ rows[first_row : first_row + len(error)])
        return total

    def _floor(self) -> float:
        return _FISHER_FLOOR * float(sum(r.mean() * c.mean() for r, c in self.statistics.terms))
