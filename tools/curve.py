"""What lies between the points of a measured quality curve.

Between two points the logarithm of the perplexity is taken as linear in resident bytes: monotone wherever the points
are, and on a convex curve a little too pessimistic. Outside the measured points nothing is claimed.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A measured point: resident bytes of a prefix, and the perplexity with it."""

    resident: int
    value: float


class QualityCurve:
    """Measured points in ascending order of bytes.

    Args:
        points: at most one a size; those that are no perplexity (not finite, not above 0) are left out.
    """

    def __init__(self, points: Iterable[Point]) -> None:
        usable = {p.resident: p for p in points if 0 < p.value < math.inf}
        self.points = tuple(usable[size] for size in sorted(usable))

    def __bool__(self) -> bool:
        return bool(self.points)

    @property
    def best(self) -> Point | None:
        """The point of the lowest perplexity, the smallest such; None if nothing was measured."""
        return min(self.points, key=lambda p: (p.value, p.resident), default=None)

    def at(self, resident: int) -> float | None:
        """The perplexity expected with so many resident bytes; None outside the measured points."""
        after = bisect_left(self.points, resident, key=lambda p: p.resident)
        if after == len(self.points):
            return None
        right = self.points[after]
        if right.resident == resident:
            return right.value
        if after == 0:
            return None
        left = self.points[after - 1]
        share = (resident - left.resident) / (right.resident - left.resident)
        return math.exp((1 - share) * math.log(left.value) + share * math.log(right.value))

    def around(self, resident: int) -> tuple[Point | None, Point | None]:
        """The measured points on both sides of a size, or the point itself twice; None where there is none."""
        below = bisect_right(self.points, resident, key=lambda p: p.resident)
        above = bisect_left(self.points, resident, key=lambda p: p.resident)
        return (
            self.points[below - 1] if below else None,
            self.points[above] if above < len(self.points) else None,
        )

    def reach(self, value: float) -> int | None:
        """The fewest resident bytes from the first point on that are expected to reach a perplexity; None: none do."""
        left: Point | None = None
        for right in self.points:
            if right.value <= value:
                if left is None:
                    return right.resident
                share = math.log(left.value / value) / math.log(left.value / right.value)
                return min(right.resident, left.resident + math.ceil(share * (right.resident - left.resident)))
            left = right
        return None
