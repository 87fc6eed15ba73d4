"""Budgets that nobody names: what fits before anything is loaded, and what fits from moment to moment."""

from collections.abc import Callable
from typing import Any

import torch

from bitstack import loader
from bsformat import Container, Plan
from bsformat.errors import BudgetError

from .api import Elastic
from .needs import Use
from .shell import Shell


def plan_auto(
    container: Container, device: torch.device, dtype: torch.dtype, use: Use
) -> tuple[loader.AutoBudget, Plan]:
    """What ``auto`` comes to for a file that is not loaded yet, and the prefix that it buys; reads no block.

    Raises:
        BudgetError: it is below the minimum. ModelError: the file holds no model of transformers.
    """
    elastic = Elastic(container, Shell(container, device=device, dtype=dtype), use)
    decided = elastic.decide_auto()
    return decided, elastic.plan_for(decided.budget)


def govern(
    model: Any,
    floor: int | str | None = None,
    ceiling: int | str | None = None,
    *,
    interval: float = 1.0,
    free: Callable[[], int | None] | None = None,
    **marks: Any,
) -> loader.Driver:
    """A governor of a loaded model: it grows and shrinks with the memory that is free on its device.

        with bitstack.govern(model, floor="40%"):
            model.generate(...)

    Between ``floor`` and ``ceiling``; at once when memory is short, in steps and after a while when there is more of it
    than the model's `use` needs. What it does it logs (`bitstack.loader.JsonLines`).

    On a CPU the heap of this process becomes steady (`bitstack.loader.steady_heap`).

    Args:
        model: from `load`.
        floor, ceiling: budgets: bytes, a size, or a percentage of all blocks; None: the minimum, all blocks.
        interval: seconds between two looks at the free memory.
        free: bytes that are free, asked at every look; None: what the device says.
        marks: other settings of `bitstack.loader.Marks`.

    Returns:
        Not started yet: use it in a ``with`` statement, or call ``start``, or ``tick`` in a loop.

    Raises:
        BudgetError: floor or ceiling are no sizes, or contradict each other, the file, or the marks.
    """
    elastic: Elastic = model.bitstack
    if elastic.device.type == "cpu":
        loader.steady_heap()  # what is freed must go back at once, or nothing that the governor does can be seen
    device, planner = elastic.device, elastic.container.planner
    lowest, highest = (size + elastic.widening for size in (planner.minimum_bytes, planner.total_bytes))
    wanted = [
        default if budget is None else elastic.planned(budget).resident_bytes + elastic.widening
        for budget, default in ((floor, lowest), (ceiling, highest))
    ]
    needs, reading = elastic.needs, loader.free_memory(device)
    if reading is None and free is None:
        raise BudgetError(f"the free memory of {device} cannot be told: say it with free=", reason="budget-invalid")
    settings = loader.Marks.around(
        floor=wanted[0],
        ceiling=wanted[1],
        # As ``auto`` would have it: what it leaves lies between the marks.
        spare=loader.spare_bytes((reading.bytes if reading else 0) + elastic.resident_bytes, device),
        beside=needs.cache_bytes + needs.workspace_bytes,
        **marks,
    )
    governor = loader.Governor(settings, max(elastic.plan.budget, elastic.resident_bytes))
    return loader.Driver(governor, elastic, free or (lambda: loader.free_bytes(device)), interval=interval)
