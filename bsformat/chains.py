"""Which chain is which rows of which tensor (spec §4.2)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metadata import Metadata


@dataclass(frozen=True, slots=True)
class Chains:
    """One entry a chain, in the order of their numbers.

    Attributes:
        tensor: the number of its tensor.
        first_row: the first row of the tensor's matrix that it covers.
        rows, columns: the size of its part of the matrix.
        raw_bytes: bytes of its one block if the tensor is raw, else 0.
    """

    tensor: npt.NDArray[Any]
    first_row: npt.NDArray[Any]
    rows: npt.NDArray[Any]
    columns: npt.NDArray[Any]
    raw_bytes: npt.NDArray[Any]

    @classmethod
    def of(cls, meta: Metadata) -> "Chains":
        """Lay out the chains of all tensors; the metadata is already checked, so that sizes are bounded."""
        counts = np.array([t.n_chains for t in meta.tensors], np.int64)
        rows = np.array([t.rows for t in meta.tensors], np.int64)
        group = np.array([t.group_rows or t.rows for t in meta.tensors], np.int64)
        columns = np.array([t.columns for t in meta.tensors], np.int64)
        raw = np.array([0 if t.packed else t.dense_bytes for t in meta.tensors], np.int64)
        tensor = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(tensor)) - np.repeat(np.cumsum(counts) - counts, counts)
        first_row = within * group[tensor]
        return cls(tensor, first_row, np.minimum(group[tensor], rows[tensor] - first_row), columns[tensor], raw[tensor])
