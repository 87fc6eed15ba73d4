"""From how many blocks on a model is worth running, as far as its file tells."""

import math
from itertools import pairwise
from typing import Final

from bsformat import Container, Plan

#: How many times the measure of the whole plan (a perplexity) a smaller one may have to be useful.
WORSE: Final = 2.0
#: Of all resident bytes, what is taken to be useful where nothing was measured. Of the files that were, those that
#: reach WORSE reach it between a fifth and a third.
SHARE: Final = 0.3


def useful_plan(container: Container, target: Plan) -> Plan:
    """The smallest prefix worth running, on the way to a larger one.

    Where the file has a quality curve: the one whose measure is at most `WORSE` times that of ``target``. Between two
    measured points its logarithm is taken as linear in resident bytes; where nothing was measured, nothing is claimed.
    Else: one that gives every chain a block, and has `SHARE` of all bytes. Never more than ``target``.
    """
    resident = _by_curve(container, target.resident_bytes)
    if resident is None:
        resident = max(_every_chain(container), int(SHARE * container.total_bytes))
    if resident >= target.resident_bytes:
        return target
    plan = container.planner.plan(max(resident, container.minimum_bytes))
    if plan.resident_bytes < resident:
        plan = container.planner.prefix(plan.n_blocks + 1)
    return plan if plan.n_blocks < target.n_blocks else target


def _by_curve(container: Container, target: int) -> int | None:
    """Resident bytes by the first curve that says anything about ``target`` resident bytes."""
    for curve in container.metadata.curves:
        points = [
            (container.planner.resident_bytes(n), math.log(value))
            for n, value in curve.points
            if n <= container.available_blocks and 0 < value < math.inf
        ]
        if not points or target < points[0][0]:
            continue
        goal = _between(points, target) + math.log(WORSE)
        if points[0][1] <= goal:
            return points[0][0]
        for left, right in pairwise(points):
            if right[1] <= goal:
                share = (left[1] - goal) / (left[1] - right[1])
                return min(right[0], left[0] + math.ceil(share * (right[0] - left[0])))
    return None


def _between(points: list[tuple[int, float]], size: int) -> float:
    """The value at a size: linear between two points, beyond the last one that of it."""
    for left, right in pairwise(points):
        if size < right[0]:
            return left[1] + (size - left[0]) / (right[0] - left[0]) * (right[1] - left[1])
    return points[-1][1]


def _every_chain(container: Container) -> int:
    """Resident bytes of the smallest prefix in which every chain that has blocks has one."""
    seen: set[int] = set()
    count = 0
    for number, chain in enumerate(container.index.chain[: container.available_blocks].tolist(), start=1):
        if chain not in seen:
            seen.add(chain)
            count = number
    return container.planner.resident_bytes(count)
