"""Designs: their notation, and what they are worth."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstack.design import Judge, Signs, Sparse, parse_design, worths_at
from bsformat.errors import RecipeError

#: Decades by which the loss of a matrix falls with a bit, and the natural logarithm of that for a byte an element.
DECADES = 0.57
SLOPE = 8 * DECADES * math.log(10)


def test_the_notation() -> None:
    assert parse_design(" s0.3 b3  s0.5 b1") == (Sparse(0.003), Signs(3), Sparse(0.005), Signs(1))
    assert parse_design("s10 b6") == (Sparse(0.1), Signs(6))


@pytest.mark.parametrize(
    "text",
    ["b0", "b7", "b-1", "b1.5", "b", "s0", "s-1", "s10.1", "snan", "sinf", "s", "x3", "3", "B3", "b2,b3", "b2 q"],
)
def test_what_is_no_stage(text: str) -> None:
    wrong = text.split()[-1]
    with pytest.raises(RecipeError, match="is no stage of a design: s and a percentage up to 10%") as caught:
        parse_design(text)
    assert caught.value.message.startswith(repr(wrong))


@pytest.mark.parametrize("text", ["", "  "])
def test_no_stage_at_all(text: str) -> None:
    with pytest.raises(RecipeError, match="at least one stage"):
        parse_design(text)


# The judge


def test_the_cost_by_hand() -> None:
    # At a worth of 1 the chain ends after two blocks, 1 + 5, or after one, 4 + 2; at 3 after none or one, 10.
    assert Judge((1.0, 3.0), 0.5).cost((10, 4, 1), (2, 3)) == pytest.approx(6 + 10 / math.sqrt(3))
    assert Judge((0.5,), 1.0).cost((10, 4, 1), (2, 3)) == pytest.approx((1 + 0.5 * 5) / 0.5)
    assert Judge((100.0,), 0.1).cost((10, 4, 1), (2, 3)) == pytest.approx(10 / 100**0.1)


def test_a_level_that_makes_it_worse_is_passed_over() -> None:
    """The chain may end before it, or go on behind it."""
    judge = Judge((1.0,), 1.0)
    assert judge.cost((10, 12), (1,)) == 10
    assert judge.cost((10, 12, 3), (1, 1)) == 5


def test_emphasis() -> None:
    """Near 0 the smallest budgets decide, at 1 those of many bytes count alike."""
    small, large = ((1000, 40, 39), (10, 10)), ((1000, 900, 1), (10, 200))
    worths = (5.0, 0.01)
    assert Judge(worths, 0.01).cost(*small) < Judge(worths, 0.01).cost(*large)
    assert Judge(worths, 1.0).cost(*small) > Judge(worths, 1.0).cost(*large)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=6),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
    st.floats(0.01, 1),
)
def test_more_levels_never_cost_more(losses: list[float], worths: list[float], emphasis: float) -> None:
    judge = Judge(tuple(worths), emphasis)
    costs = [judge.cost(losses[: n + 1], [7] * n) for n in range(len(losses))]
    assert all(b <= a for a, b in pairwise(costs))


def test_sizes_and_losses_must_match() -> None:
    with pytest.raises(ValueError, match="argument"):
        Judge((1.0,), 1.0).cost((3, 2), (1, 1))


# The worth of a byte


@pytest.mark.parametrize("bits", [0.5, 2.0, 7.25])
def test_of_one_matrix(bits: float) -> None:
    (worth,) = worths_at([bits], [(1000, 50.0)])
    assert worth == pytest.approx(SLOPE * 50 / 1000 * 10 ** (-DECADES * bits), rel=1e-9)


def test_of_two_matrices_by_hand() -> None:
    """The one that loses a hundred times as much gets log10(100) / 0.57 = 3.5 bits before the other gets any."""
    matrices = [(1000, 1.0), (1000, 100.0)]
    low, high = worths_at([1.0, 4.0], matrices)
    assert low == pytest.approx(SLOPE * 0.1 * 10 ** (-DECADES * 2))  # two bits for one, none for the other
    # Both: the mean of the logarithms of their first worths, less four bits.
    assert high == pytest.approx(SLOPE * 0.01 * 10 ** (-DECADES * 4))


def test_matrices_that_nothing_depends_on_leave_their_bytes_to_the_others() -> None:
    (alone,) = worths_at([4.0], [(1000, 5.0)])
    (beside,) = worths_at([2.0], [(1000, 5.0), (1000, 0.0)])
    assert beside == pytest.approx(alone)


def test_nothing_to_lose() -> None:
    assert worths_at([1.0, 2.0], [(10, 0.0)]) == worths_at([1.0, 2.0], []) == (1e-300, 1e-300)


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-12, 1e9)), min_size=1, max_size=6),
    st.lists(st.floats(0.1, 16), min_size=2, max_size=5, unique=True),
)
def test_the_worth_falls_with_the_bits(matrices: list[tuple[int, float]], bits: list[float]) -> None:
    found = worths_at(sorted(bits), matrices)
    assert all(w > 0 for w in found)
    assert all(b <= a for a, b in pairwise(found))
    # What is given out at each worth is what was asked for.
    for wanted, worth in zip(sorted(bits), found, strict=True):
        given = sum(n * max(math.log10(SLOPE * loss / n / worth), 0) / DECADES for n, loss in matrices)
        assert given == pytest.approx(wanted * sum(n for n, _ in matrices), rel=1e-6)
