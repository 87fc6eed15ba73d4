"""Reading between the points of a measured curve."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstack.tools.curve import Point, QualityCurve

CURVE = QualityCurve([Point(100, 80.0), Point(200, 40.0), Point(400, 20.0)])

curves = st.dictionaries(st.integers(1, 2**50), st.floats(1.0, 1e9), min_size=1, max_size=8).map(
    lambda points: QualityCurve(Point(size, value) for size, value in points.items())
)


@pytest.mark.parametrize(("resident", "value"), [(100, 80.0), (200, 40.0), (400, 20.0)])
def test_a_measured_point_is_itself(resident: int, value: float) -> None:
    assert CURVE.at(resident) == value


def test_between_two_points_the_logarithm_is_linear() -> None:
    assert CURVE.at(150) == pytest.approx(math.sqrt(80 * 40))
    assert CURVE.at(300) == pytest.approx(math.sqrt(40 * 20))


@pytest.mark.parametrize("resident", [0, 99, 401, 10**15])
def test_outside_the_points_nothing_is_claimed(resident: int) -> None:
    assert CURVE.at(resident) is None


@pytest.mark.parametrize(
    ("value", "resident"), [(1e9, 100), (80.0, 100), (math.sqrt(80 * 40), 150), (40.0, 200), (20.0, 400), (19.9, None)]
)
def test_the_fewest_bytes_that_reach_a_value(value: float, resident: int | None) -> None:
    assert CURVE.reach(value) == resident


@pytest.mark.parametrize(
    ("resident", "below", "above"),
    [(99, None, 100), (100, 100, 100), (101, 100, 200), (200, 200, 200), (399, 200, 400), (401, 400, None)],
)
def test_the_points_around_a_size(resident: int, below: int | None, above: int | None) -> None:
    assert tuple(p and p.resident for p in CURVE.around(resident)) == (below, above)


@given(curves, st.lists(st.floats(0.5, 1e9), min_size=2, max_size=5))
def test_a_better_perplexity_never_needs_less(curve: QualityCurve, values: list[float]) -> None:
    needed = [curve.reach(value) for value in sorted(values, reverse=True)]
    known = [n for n in needed if n is not None]
    assert known == sorted(known)
    assert None not in needed[: len(known)]


def test_the_order_of_the_points_does_not_matter() -> None:
    assert QualityCurve(reversed(CURVE.points)).points == CURVE.points


def test_the_best_point_is_the_smallest_of_the_lowest_value() -> None:
    assert QualityCurve([Point(1, 9.0), Point(2, 5.0), Point(3, 5.0), Point(4, 6.0)]).best == Point(2, 5.0)


def test_a_curve_that_rises_again_is_reached_where_it_first_falls() -> None:
    assert QualityCurve([Point(10, 16.0), Point(20, 4.0), Point(30, 64.0), Point(40, 2.0)]).reach(8.0) == 15


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_perplexity_is_left_out(value: float) -> None:
    assert QualityCurve([Point(1, value), Point(2, 3.0)]).points == (Point(2, 3.0),)


def test_without_points_there_is_no_answer() -> None:
    empty = QualityCurve([])
    assert (bool(empty), empty.best, empty.at(1), empty.reach(1e9)) == (False, None, None, None)


@given(curves, st.integers(0, 2**50))
def test_an_estimate_lies_between_its_neighbours(curve: QualityCurve, resident: int) -> None:
    value = curve.at(resident)
    if value is not None:
        below = max((p for p in curve.points if p.resident <= resident), key=lambda p: p.resident)
        above = min((p for p in curve.points if p.resident >= resident), key=lambda p: p.resident)
        low, high = sorted((below.value, above.value))
        assert low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


@given(curves, st.floats(0.5, 1e9))
def test_what_reaches_a_value_has_it(curve: QualityCurve, value: float) -> None:
    resident = curve.reach(value)
    if resident is None:
        assert all(p.value > value for p in curve.points)
    else:
        expected = curve.at(resident)
        assert expected is not None
        # A byte is the step of the answer: between points a byte apart it is the later one.
        assert expected <= value * (1 + 1e-9)
