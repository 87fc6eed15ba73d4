"""How the work of a product is shared out to the programs of `hopper`: evenly, as far as one then needs no second Z."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

FIELDS = 8
"""Numbers of a program: its first unit; chain, slice, segment and tile of that; the rest is unused."""

PARTS = 16
"""Programs that make Z of a slice and a segment, before those of a product."""
LATE = {8: 4, 16: 2}
"""Units that a program has less, by the columns of the factors, if it begins where such programs were before."""

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


def _weights(total: int, programs: int, late: int, less: int) -> list[int]:
    """What programs have of ``total`` units, to scale: the last ``late`` ones ``less`` units fewer than the others."""
    if late >= programs or total < 2 * less * programs:
        return [1] * programs
    most = total + late * less
    return [most] * (programs - late) + [most - less * programs] * late


def _starts(sizes: Sequence[int], weights: Sequence[int]) -> list[int]:
    """The first unit of each program, for groups of some sizes and programs of some weights.

    A group goes to the programs whose middle would be in it if all had their part to the unit; one that no middle is
    in, to the program before. Where there are not two programs for each group, all just have their part.
    """
    total, programs = sum(sizes), len(weights)
    ends = [0, *accumulate(weights)]
    if 2 * len(sizes) > programs:
        return [end * total // ends[-1] for end in ends[:-1]]
    starts: list[int] = []
    low = 0
    for size in sizes:
        first = end = len(starts)
        while end < programs and (ends[end] + ends[end + 1]) * total < 2 * ends[-1] * (low + size):
            end += 1
        own = ends[end] - ends[first]
        starts += [low + (ends[program] - ends[first]) * size // own for program in range(first, end)]
        low += size
    return [0, *starts[1:]] if starts else [0] * programs


def late_programs(slices: int, factors: int, ranks: int) -> int:
    """Programs of a product that begin late: the last ones, as they come where those were that make Z.

    Args:
        slices: of columns. factors: different V of all chains. ranks: columns of the factors of a segment, 8 or 16.
    """
    return -(-slices * PARTS * factors * ranks // 64)  # 2048 threads of an SM, over 32 for each column


def shares(chains: tuple[Chain, ...], slices: int, programs: int, late: int = 0, less: int = 0) -> list[list[int]]:
    """Where each of some programs begins, and, as one more row, where the last one ends.

    A unit is a tile of rows of a segment in a slice of columns; units are in the order chain, slice, segment, tile. A
    program mostly has units of one group, those with the same Z.

    Args:
        chains: of the matrix.
        slices: of its columns.
        programs: of a launch.
        late: of them, the last ones, that begin after the others.
        less: units that those have less, if all have enough.

    Returns:
        [programs + 1] rows of `FIELDS` numbers.
    """
    groups = list(_groups(chains, slices))
    sizes = [units for *_, units in groups]
    rows: list[list[int]] = []
    place = low = 0
    for start in _starts(sizes, _weights(sum(sizes), programs, late, less)):
        while place < len(sizes) and start >= low + sizes[place]:
            low += sizes[place]
            place += 1
        chain, column, segment, _ = groups[min(place, len(groups) - 1)] if groups else (0, 0, 0, 0)
        tiles = chains[chain][0] if chains else 1
        rows.append(
            [start, chain, column, segment + (start - low) // tiles, (start - low) % tiles, *[0] * (FIELDS - 5)]
        )
    return [*rows, [sum(sizes), *[0] * (FIELDS - 1)]]
