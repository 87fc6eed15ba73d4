"""How the work of a product is shared out: every unit once, about as many for each program, mostly one Z for each."""

import random
from itertools import pairwise

import pytest

from bitstack.kernels.shares import CHANGE, FIELDS, shares


def _units(chains, slices):
    """All units in their order: chain, slice, segment, tile."""
    return [
        (number, column, segment, tile)
        for number, (tiles, runs) in enumerate(chains)
        for column in range(slices)
        for segment in range(sum(runs))
        for tile in range(tiles)
    ]


def _drawn(draw):
    return tuple(
        (draw.randint(1, 40), tuple(draw.randint(1, 4) for _ in range(draw.randint(0, 5))))
        for _ in range(draw.randint(1, 4))
    )


@pytest.mark.parametrize("programs", [1, 2, 7, 132])
def test_every_unit_is_somebodys(programs):
    draw = random.Random(programs)
    for _ in range(200):
        chains, slices = _drawn(draw), draw.randint(1, 7)
        units = _units(chains, slices)
        rows = shares(chains, slices, programs)
        assert len(rows) == programs + 1
        assert {len(row) for row in rows} == {FIELDS}
        assert (rows[0][0], rows[programs][0]) == (0, len(units))
        for row, after in pairwise(rows):
            assert row[0] <= after[0]
            if row[0] < after[0]:
                assert tuple(row[1:5]) == units[row[0]]


@pytest.mark.parametrize(
    ("chains", "slices", "most"),
    [
        (((224, (1, 1, 1, 1)),), 2, 14),  # 14336 by 4096, four sign blocks: 1792 units, 13.6 a program
        (((64, (1, 1, 1, 1)),), 2, 4),  # 4096 by 4096
        (((64, (1, 1, 1, 1)),), 7, 16),  # 4096 by 14336: 28 groups, of which each has four or five programs
        (((64, (4,)),), 7, 15),  # the same, as a sign block and three planes, which share Z
    ],
)
def test_programs_have_about_as_many_units_of_one_z(chains, slices, most):
    rows = shares(chains, slices, 132)
    (tiles, runs), *_ = chains
    assert max(after[0] - row[0] for row, after in pairwise(rows)) == most
    groups = len(runs) * slices
    size = tiles * sum(runs) * slices // groups  # units
    crossing = sum(row[0] // size != (after[0] - 1) // size for row, after in pairwise(rows))
    assert crossing == 0


def test_without_units_nobody_has_any():
    assert [row[0] for row in shares(((5, ()),), 3, 4)] == [0] * 5


def test_many_small_groups_are_not_kept_together():
    rows = shares(((1, (1,) * 40),), 1, 4)
    assert [row[0] for row in rows] == [0, 10, 20, 30, 40]


def test_a_second_z_is_worth_an_even_share():
    """Ten groups of 13 units for 12 programs: kept together, a program of one alone has all of it."""
    chains = ((13, (1,) * 10),)
    counts = [after[0] - row[0] for row, after in pairwise(shares(chains, 1, 12))]
    assert max(counts) == 13  # even shares have 11, but two Z for most
    chains = ((130, (1,) * 10),)
    counts = [after[0] - row[0] for row, after in pairwise(shares(chains, 1, 12))]
    assert max(counts) == 109
    assert 109 + CHANGE < 130
