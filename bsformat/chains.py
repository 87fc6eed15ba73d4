"""Which chain is which rows of which tensor, and what may follow what in a chain (spec §4.2 and §5)."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .metadata import Metadata
from .registry import MAX_PLANES

Array = npt.NDArray[Any]


class Parts(NamedTuple):
    """What some chains are; one entry for each chain that was asked for.

    Attributes:
        tensor: the number of its tensor.
        first_row: the first row of the tensor's matrix that it covers.
        rows, columns: the size of its part of the matrix.
        raw_bytes: bytes of its one block if the tensor is raw, else 0.
    """

    tensor: Array
    first_row: Array
    rows: Array
    columns: Array
    raw_bytes: Array


class Chains:
    """Looks chains up by their numbers. It holds one row a tensor, since few bytes can declare millions of chains."""

    def __init__(self, meta: Metadata) -> None:
        table = [
            (t.first_chain, t.rows, t.group_rows or t.rows, t.columns, 0 if t.packed else t.dense_bytes)
            for t in meta.tensors
        ]
        self._table = np.array(table, np.int64).reshape(-1, 5).T

    def at(self, chain: int | Array) -> Parts:
        """What the chains of those numbers, which exist, are: int64 arrays of the shape of ``chain``."""
        numbers = np.asarray(chain, np.int64)
        tensor = np.searchsorted(self._table[0], numbers, side="right") - 1
        first, rows, group, columns, raw_bytes = self._table[:, tensor]
        first_row = (numbers - first) * group
        return Parts(tensor, first_row, np.minimum(group, rows - first_row), columns, raw_bytes)


def takes_plane(kinds: Sequence[str]) -> bool:
    """Whether a plane may follow levels of these kinds: a sign block, then planes alone, fewer than `MAX_PLANES`."""
    planes = len(list(takewhile(lambda kind: kind == "plane", reversed(kinds))))
    return planes < min(MAX_PLANES, len(kinds)) and kinds[-1 - planes] == "sign"
