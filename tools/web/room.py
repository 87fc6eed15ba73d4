"""How many models the page keeps in memory, and how large they may get: decided once, with the reason in words."""

from dataclasses import dataclass
from typing import Literal

import torch

from bitstack import Use
from bitstack.api import Elastic
from bitstack.loader import useful_plan
from bitstack.shell import Shell
from bsformat import Container, format_size, parse_size
from bsformat.errors import BudgetError

Wanted = Literal["auto", "one", "two"]


@dataclass(frozen=True, slots=True)
class Room:
    """What was decided.

    Attributes:
        models: 1 or 2.
        least, most: bytes of the smallest and of the largest budget of a side.
        budgets: bytes that the two sides begin with.
        reason: why so many models, in a sentence.
    """

    models: int
    least: int
    most: int
    budgets: tuple[int, int]
    reason: str


def find_room(
    container: Container,
    device: torch.device,
    dtype: torch.dtype,
    use: Use,
    *,
    models: Wanted = "auto",
    budget: str | None = None,
    against: str | None = None,
    ceiling: str | None = None,
) -> Room:
    """Ask the device what is free, and decide; no block is read.

    Two models show two texts at the same time, and take the sum of two budgets; one is resized from text to text.

    Args:
        budget, against: sizes of the two sides; None: the smallest useful prefix, and the most there is room for.
        ceiling: a size that no side exceeds; None: what there is room for, all blocks at most.

    Raises:
        BudgetError: what was asked for does not fit, or contradicts itself.
    """
    elastic = Elastic(container, Shell(container, device=device, dtype=dtype), use)
    decided, wider = elastic.decide_auto(), elastic.widening
    least, all_blocks = decided.least, decided.most
    needs = decided.needs
    # `decided.room` leaves one cache and one workspace aside; a second model has its own.
    second = decided.room - (needs.cache_bytes + needs.workspace_bytes if needs else 0)

    def size(text: str) -> int:
        value = parse_size(text, container.total_bytes) + (wider if text.strip().endswith("%") else 0)
        if value < least:
            raise _refused(container, f"{text} is below the minimum of this file: {format_size(least)}")
        return min(value, all_blocks)

    highest = size(ceiling) if ceiling else all_blocks
    count = 1 if models == "one" or (models == "auto" and second < 2 * highest) else 2
    fits = second // 2 if count == 2 else decided.room
    if fits < least:
        raise _refused(container, "there is no room for two models: leave out --models two, or free memory")
    most = min(highest, fits)
    useful = useful_plan(container, container.planner.plan(most - wider)).resident_bytes + wider
    first, other = size(budget) if budget else min(useful, most), size(against) if against else most
    for name, value in (("budget", first), ("against", other)):
        if value > most:
            raise _refused(
                container,
                f"--{name} {format_size(value)} is above the most that a side may have, {format_size(most)}"
                + ("; --models one leaves more" if count == 2 and not ceiling else ""),
            )
    free, twice = format_size(decided.free.bytes), format_size(2 * highest)
    if count == 2:
        reason = f"Two models in memory, one for each side: {free} are free on {device}, both take at most {twice}."
    elif models == "one":
        reason = "One model in memory, resized from side to side, as --models one asks."
    else:
        reason = f"One model in memory, resized from side to side: {free} are free on {device}, two could take {twice}."
    return Room(count, least, most, (first, other), reason)


def _refused(container: Container, message: str) -> BudgetError:
    return BudgetError(message, where=container.uri, reason="budget-invalid")
