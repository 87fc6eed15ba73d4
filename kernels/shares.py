"""How the work of a product is shared out to the programs of `hopper`: evenly, as far as one then needs no second Z."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

FIELDS = 8
"""Numbers of a program: its first unit; chain, slice, segment and tile of that; the rest is unused."""

CHANGE = 4
"""Units in whose time a program makes a second Z."""

Chain = tuple[int, tuple[int, ...]]
"""Tiles of rows, and how many segments share each V, one after the other."""


def _groups(chains: Sequence[Chain], slices: int) -> Iterator[tuple[int, int, int, int]]:
    """Units with the same Z, in the order of all units: chain, slice, first segment, and how many units."""
    for number, (tiles, runs) in enumerate(chains):
        for column in range(slices):
            segment = 0
            for length in runs:
                yield number, column, segment, length * tiles
                segment += length


def _kept_together(sizes: Sequence[int], programs: int) -> list[int]:
    """The first unit of each program, none of which has units of two groups.

    A group goes to the programs whose middle would be in it if all had as much; one that no middle is in, to the
    program before.
    """
    total = sum(sizes)
    starts: list[int] = []
    low = 0
    for size in sizes:
        first = end = len(starts)
        while end < programs and (2 * end + 1) * total < 2 * programs * (low + size):
            end += 1
        starts += [low + (program - first) * size // (end - first) for program in range(first, end)]
        low += size
    return [0, *starts[1:]] if starts else [0] * programs


def _slowest(sizes: Sequence[int], starts: Sequence[int]) -> int:
    """The most that a program has: units, and `CHANGE` for each group after its first."""
    ends = list(accumulate(sizes))
    worst = group = 0
    for start, stop in zip(starts, [*starts[1:], sum(sizes)], strict=True):
        while group < len(ends) and ends[group] <= start:
            group += 1
        last = group
        while last < len(ends) and ends[last] < stop:
            last += 1
        worst = max(worst, stop - start + CHANGE * (last - group))
    return worst


def shares(chains: tuple[Chain, ...], slices: int, programs: int) -> list[list[int]]:
    """Where each of some programs begins, and, as one more row, where the last one ends.

    A unit is a tile of rows of a segment in a slice of columns; units are in the order chain, slice, segment, tile.
    Programs have as many each, or units of one group only, those with the same Z: whichever ends first.

    Args:
        chains: of the matrix.
        slices: of its columns.
        programs: of a launch.

    Returns:
        [programs + 1] rows of `FIELDS` numbers.
    """
    groups = list(_groups(chains, slices))
    sizes = [units for *_, units in groups]
    even = [program * sum(sizes) // programs for program in range(programs)]
    starts = min(_kept_together(sizes, programs), even, key=lambda starts: _slowest(sizes, starts))
    rows: list[list[int]] = []
    place = low = 0
    for start in starts:
        while place < len(sizes) and start >= low + sizes[place]:
            low += sizes[place]
            place += 1
        chain, column, segment, _ = groups[min(place, len(groups) - 1)] if groups else (0, 0, 0, 0)
        tiles = chains[chain][0] if chains else 1
        rows.append(
            [start, chain, column, segment + (start - low) // tiles, (start - low) % tiles, *[0] * (FIELDS - 5)]
        )
    return [*rows, [sum(sizes), *[0] * (FIELDS - 1)]]
