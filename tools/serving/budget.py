"""The budget of a served model: what it is, and changing it while requests are answered."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bitstack.api import Elastic
from bitstack.loader import Driver, Growth
from bsformat import parse_size
from bsformat.errors import BstkError, BudgetError


class Budget:
    """Reads and sets the budget of a model that others use at the same time.

    Under a governor, what is set is also the most that the governor takes from then on; it goes below that where
    memory is short, and comes back.

    Args:
        elastic: the handle of the model.
        governor: what resizes it by itself; None: nothing does.
    """

    def __init__(self, elastic: Elastic, governor: Driver | None = None) -> None:
        self.elastic, self._governor = elastic, governor
        self._floor = self._ceiling = None
        self._past: Growth | None = None  # what became of it is of no interest: a later change came through
        if governor is not None:
            self._floor, self._ceiling = governor.governor.marks.floor, governor.governor.marks.ceiling

    def state(self) -> dict[str, Any]:
        """What is resident, and within which bounds; sizes are bytes of memory."""
        elastic = self.elastic
        plan, planner, wider = elastic.plan, elastic.container.planner, elastic.widening
        resident = plan.resident_bytes + wider
        out: dict[str, Any] = {
            "object": "budget",
            "budget_bytes": max(plan.budget, resident),  # a percentage is one of the blocks as they are stored
            "resident_bytes": resident,
            "n_blocks": plan.n_blocks,
            "available_blocks": elastic.container.available_blocks,
            "minimum_bytes": planner.minimum_bytes + wider,
            "total_bytes": planner.total_bytes + wider,
            "growing": None,
            "governor": None,
        }
        growth = elastic.growth
        if growth is not None and growth is not self._past and (not growth.done or growth.error is not None):
            out["growing"] = {
                "target_blocks": growth.target.n_blocks,
                "target_bytes": growth.target.resident_bytes + wider,
                "error": growth.error.message if growth.error is not None else None,
            }
        if self._governor is not None:
            marks = self._governor.governor.marks
            out["governor"] = {
                "floor_bytes": marks.floor,
                "ceiling_bytes": marks.ceiling,
                "highest_ceiling_bytes": self._ceiling,
            }
        return out

    def headers(self, n_blocks: int, resident_bytes: int) -> Mapping[str, str]:
        """What an answer says about the blocks that it begins with: those that made its first token."""
        value = f"blocks={n_blocks}, resident-bytes={resident_bytes}"
        growth = self.elastic.growth
        if growth is not None and not growth.done:
            value += f", target-blocks={growth.target.n_blocks}"
        return {"X-Bstk-Plan": value}

    def set(self, budget: int | str, *, progressive: bool = False) -> None:
        """Resize, between two passes of whatever runs; returns when that is done, or has begun if ``progressive``.

        Args:
            budget: bytes, ``80MiB``, ``60%`` of all blocks, or ``auto``.

        Raises:
            BudgetError: no budget, or outside of the bounds. ResizeError: a later one took its place.
            SourceError, FormatError: its bytes could not be read; then nothing has changed.
        """
        elastic, governor = self.elastic, self._governor
        if governor is None:
            if progressive:
                elastic.grow(budget)
            else:
                elastic.resize(budget)
                self._past = elastic.growth
            return
        if progressive:
            raise BudgetError("a governor resizes this model in steps of its own: leave out progressive")
        wanted = self._within(budget)
        governor.limit(wanted)

    def _within(self, budget: int | str) -> int:
        """Bytes of a budget, held against the bounds of the governor."""
        elastic, floor, ceiling = self.elastic, self._floor or 0, self._ceiling or 0
        if budget == "auto":
            return max(floor, min(elastic.decide_auto().budget, ceiling))
        percent = isinstance(budget, str) and budget.strip().endswith("%")
        size = elastic.planned(budget).resident_bytes + elastic.widening if percent else parse_size(budget)
        elastic.planned(size)
        if not floor <= size <= ceiling:
            raise BudgetError(f"{size} bytes are not between the floor, {floor}, and the ceiling, {ceiling}")
        return size

    def settle(self) -> None:
        """End whatever is being read: the model stays as it is."""
        elastic = self.elastic
        if elastic.growth is not None:
            elastic.growth.cancel()
        with suppress(BstkError):  # the turn is taken, and that is all that matters
            elastic.resize(max(elastic.plan.budget, elastic.resident_bytes))
