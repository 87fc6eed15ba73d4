"""Row and column scales of a packed matrix."""

from dataclasses import dataclass
from typing import Final

import torch

#: Floors of the scales relative to their mean: a dead channel must not blow up its reciprocal.
COLUMN_FLOOR: Final = 1e-3
ROW_FLOOR: Final = 0.05


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
