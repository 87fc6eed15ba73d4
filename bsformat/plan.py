"""What a budget buys: the longest prefix of the blocks whose resident bytes do not exceed it (spec §7.3)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BudgetError
from .units import format_size


@dataclass(frozen=True, slots=True)
class Plan:
    """A prefix of the blocks of one file.

    Attributes:
        n_blocks: how many leading blocks.
        resident_bytes: bytes of those blocks when decoded: what a model holds for its weights.
        offset, length: the one range of the file that holds them, in bytes.
        budget: the bytes that were asked for; ``resident_bytes`` is at most this.
        next_bytes: resident bytes with one block more, which is above the budget; None if there is none.
    """

    n_blocks: int
    resident_bytes: int
    offset: int
    length: int
    budget: int
    next_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


class Planner:
    """Answers budgets for one file; building it costs one pass over the index, each answer a binary search.

    Args:
        lengths, ends: for each block its resident bytes, and where it ends in the file.
        required: blocks that every plan includes.
        offset: where the first block starts.
        where: path or URI, for messages.
    """

    def __init__(
        self, lengths: npt.NDArray[Any], ends: npt.NDArray[Any], required: int, offset: int, where: str
    ) -> None:
        self._resident = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
        self._ends = np.concatenate([np.array([offset], np.int64), ends.astype(np.int64)])
        self._required, self._offset, self._where = required, offset, where

    @property
    def total_bytes(self) -> int:
        """Resident bytes of all blocks."""
        return int(self._resident[-1])

    @property
    def minimum_bytes(self) -> int:
        """Resident bytes of the required blocks: the smallest budget."""
        return int(self._resident[self._required])

    def resident_bytes(self, n_blocks: int) -> int:
        """Resident bytes of the first ``n_blocks`` blocks."""
        return int(self._resident[n_blocks])

    def plan(self, budget: int) -> Plan:
        """The longest prefix within ``budget`` bytes.

        Raises:
            BudgetError: reason ``budget-too-small``, naming the minimum.
        """
        if budget < self.minimum_bytes:
            raise BudgetError(
                f"a budget of {budget} bytes ({format_size(budget)}) is below the minimum of this file: "
                f"{self.minimum_bytes} bytes ({format_size(self.minimum_bytes)})",
                where=self._where,
                reason="budget-too-small",
            )
        return self.prefix(int(np.searchsorted(self._resident, budget, side="right")) - 1, budget)

    def prefix(self, n_blocks: int, budget: int | None = None) -> Plan:
        """The plan of the first ``n_blocks`` blocks."""
        after = int(self._resident[n_blocks + 1]) if n_blocks + 1 < len(self._resident) else None
        resident = int(self._resident[n_blocks])
        length = int(self._ends[n_blocks]) - self._offset
        return Plan(n_blocks, resident, self._offset, length, resident if budget is None else budget, after)
