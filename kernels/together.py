"""Matrices that are multiplied by the same x, as for queries, keys and values: in one launch, where kernels can."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from weakref import ref

import torch

from .blocks import require
from .hopper_table import new_shares, share_out
from .running_sums import reserve_sums
from .table import Table

if TYPE_CHECKING:
    from .hopper import Launch

MOST: Final = 4
"""Matrices of a launch."""


class Together:
    """Tables of several matrices with the same columns; what they hold may change, and is followed.

    It keeps none of them: who multiplies by them does, and keeps this for as long as a CUDA graph does.

    Attributes:
        shares: int32 [programs + 1, 8], what each program does.
        launch: what `hopper` keeps of them.

    Args:
        tables: such as `possible` finds.

    Raises:
        ValueError: they cannot be multiplied in one launch.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        require(self.possible(tables), "there are no kernels that multiply such matrices in one launch")
        self._tables = tuple(ref(table) for table in tables)
        self.launch: Launch | None = None
        device = tables[0].device
        known = [table.hopper for table in tables if table.hopper is not None]
        with torch.inference_mode(False):  # as those of a table
            self.shares = new_shares(device)
        self.share_out()
        reserve_sums(min(each.few for each in known) * sum(table.rows for table in tables), device)
        for each in known:
            each.together.add(self)

    @staticmethod
    def possible(tables: Sequence[Table]) -> bool:
        """Whether there are kernels that multiply such matrices in one launch."""
        if not 2 <= len(tables) <= MOST or any(table.hopper is None or table.n_chains > 1 for table in tables):
            return False
        return len({(t.columns, t.ranks, t.device, t.col_scale.dtype) for t in tables}) == 1

    @property
    def tables(self) -> tuple[Table, ...]:
        """Of the matrices, two to four, in order.

        Raises:
            ValueError: one of them is no more.
        """
        tables = tuple(table for known in self._tables if (table := known()) is not None)
        require(len(tables) == len(self._tables), "a table of a matrix that is multiplied with others is no more")
        return tables

    def share_out(self) -> None:
        """Write anew what each program does, after a change of a table."""
        if any(known() is None for known in self._tables):
            return  # nobody can multiply by them any more
        tables = self.tables
        work = tuple(chain for table in tables if table.hopper is not None for chain in table.hopper.work)
        share_out(work, tables[0].columns, self.shares)
