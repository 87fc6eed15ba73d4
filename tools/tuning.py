"""The search of ``bstk tune``: one number of a configuration after the other, by measured time."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bitstack.kernels.configs import Config

CHOICES: Final = {
    "rows": (32, 64, 128, 256),
    "bytes": (16, 32, 64),
    "slice": (512, 1024, 2048, 4096),
    "warps": (4, 8),
    "stages": (2, 3, 4),
    "tokens": (1, 2),
    "chunk": (128, 256, 512, 1024),
    "scale_warps": (4, 8),
}
"""Values of each number, in the order in which they are tried."""

Measure = Callable[[Config], float | None]
"""Microseconds of a configuration, or None where it cannot run."""


@dataclass(frozen=True, slots=True)
class Found:
    """How a search ended.

    Attributes:
        config: the fastest.
        microseconds: of it.
        before: microseconds of where the search began.
        tried: configurations that were measured, in order, with their times.
        complete: whether nothing was left out for time.
    """

    config: Config
    microseconds: float
    before: float
    tried: list[tuple[Config, float | None]]
    complete: bool


def neighbours(config: Config, name: str) -> Iterator[Config]:
    """The other values of one number, those numbers going along that must."""
    for value in CHOICES[name]:
        if value == getattr(config, name):
            continue
        numbers = {"slice": config.slice, "bytes": config.bytes, "chunk": config.chunk} | {name: value}
        if name != "chunk":
            numbers["chunk"] = min(max(numbers["chunk"], 8 * numbers["bytes"]), numbers["slice"])
        try:
            yield replace(config, **(numbers if name in numbers else {name: value}))
        except ValueError:
            continue


def search(start: Config, measure: Measure, seconds: float, note: Callable[[Config, float | None], object]) -> Found:
    """Go from a configuration to the fastest that changing one number at a time leads to.

    A change must gain 1 % to be taken, so that noise does not wander. Rounds over all numbers end when one brings none.

    Args:
        start: where to begin; it must run.
        measure: what a configuration takes.
        seconds: begin no measurement after so long.
        note: called with each that was measured.

    Raises:
        ValueError: `start` does not run.
    """
    began = time.monotonic()
    tried: dict[Config, float | None] = {}

    def cost(config: Config) -> float | None:
        if config not in tried:
            tried[config] = measure(config)
            note(config, tried[config])
        return tried[config]

    best, before = start, cost(start)
    if before is None:
        raise ValueError("the configuration to begin with does not run on this device")
    least, complete, better = before, True, True
    while better and complete:
        better = False
        for name in CHOICES:
            for config in neighbours(best, name):
                if time.monotonic() - began > seconds:
                    complete = False
                    break
                found = cost(config)
                if found is not None and found < 0.99 * least:
                    best, least, better = config, found, True
    return Found(best, least, before, list(tried.items()), complete)


def geometric_mean(times: Sequence[float]) -> float:
    """What several products take together, each counting alike."""
    return math.exp(sum(map(math.log, times)) / len(times))
