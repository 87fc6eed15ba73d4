"""The global order of blocks."""

from collections import Counter
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsformat.order import order_by_worth

Chains = tuple[dict[str, list[float]], dict[str, list[int]]]

#: Whole numbers, so that every sum below is exact.
_gains = st.lists(st.tuples(st.integers(-8, 60), st.integers(1, 9)), max_size=6)


@st.composite
def _chains(draw: st.DrawFn, most: int = 5) -> Chains:
    losses, sizes = {}, {}
    for name in "abcde"[: draw(st.integers(0, most))]:
        loss = [1000.0]
        for gain, _ in (chain := draw(_gains)):
            loss.append(loss[-1] - gain)
        losses[name], sizes[name] = loss, [size for _, size in chain]
    return losses, sizes


def _curve(chains: Chains, keys: list[str]) -> list[tuple[int, float]]:
    """(bytes, total loss) of every prefix."""
    losses, sizes = chains
    used: Counter[str] = Counter()
    points = [(0, sum(loss[0] for loss in losses.values()))]
    for key in keys:
        at = used[key]
        used[key] += 1
        points.append((points[-1][0] + sizes[key][at], points[-1][1] + losses[key][at + 1] - losses[key][at]))
    return points


def _greedy(chains: Chains) -> list[str]:
    """Always the one next block with the best ratio."""
    losses, sizes = chains
    used: Counter[str] = Counter()
    out = []
    while open_ := [k for k in losses if used[k] < len(sizes[k])]:
        best = max(open_, key=lambda k: (losses[k][used[k]] - losses[k][used[k] + 1]) / sizes[k][used[k]])
        used[best] += 1
        out.append(best)
    return out


def _boundaries(order: list[tuple[str, float]]) -> list[int]:
    """Prefixes after which the worth falls, and that end with a block that is worth something."""
    return [
        i
        for i in range(1, len(order) + 1)
        if order[i - 1][1] > 0 and (i == len(order) or order[i][1] < order[i - 1][1])
    ]


@given(_chains())
def test_every_block_appears_once_and_worth_falls(chains: Chains) -> None:
    losses, sizes = chains
    order = order_by_worth(losses, sizes)
    assert Counter(key for key, _ in order) == Counter({k: len(s) for k, s in sizes.items() if s})
    assert all(a[1] >= b[1] for a, b in pairwise(order))
    assert all(worth >= 0 for _, worth in order)


@given(_chains())
def test_worth_is_the_gain_per_byte_of_a_group(chains: Chains) -> None:
    losses, sizes = chains
    order = order_by_worth(losses, sizes)
    for key in losses:
        worths = [worth for k, worth in order if k == key]
        for worth in set(worths) - {0.0}:
            first, last = worths.index(worth), len(worths) - worths[::-1].index(worth)
            gain = losses[key][first] - losses[key][last]
            assert worth * sum(sizes[key][first:last]) == pytest.approx(gain, rel=1e-12)


@given(_chains())
def test_never_worse_than_single_steps_where_a_group_ends(chains: Chains) -> None:
    order = order_by_worth(*chains)
    ours, greedy = _curve(chains, [k for k, _ in order]), _curve(chains, _greedy(chains))
    for i in _boundaries(order):
        size, loss = ours[i]
        assert loss <= min(value for used, value in greedy if used <= size)


@given(_chains(most=3))
@settings(max_examples=60)
def test_nothing_better_fits_where_a_group_ends(chains: Chains) -> None:
    losses, sizes = chains
    order = order_by_worth(losses, sizes)
    curve = _curve(chains, [k for k, _ in order])
    everything = [
        (
            sum(sum(sizes[k][:n]) for k, n in zip(losses, counts, strict=True)),
            sum(losses[k][n] for k, n in zip(losses, counts, strict=True)),
        )
        for counts in product(*(range(len(sizes[k]) + 1) for k in losses))
    ]
    for i in _boundaries(order):
        size, loss = curve[i]
        assert loss == min(value for used, value in everything if used <= size)


def test_a_block_that_is_worth_more_joins_the_one_before_it() -> None:
    losses = {"a": [20.0, 19.0, 9.0], "b": [10.0, 6.0]}
    # Alone a's first block is worth least of all; with the second, 11 for 2 bytes, it goes before b's 4.
    assert order_by_worth(losses, {"a": [1, 1], "b": [1]}) == [("a", 5.5), ("a", 5.5), ("b", 4.0)]


def test_a_join_may_reach_back_over_several_blocks() -> None:
    order = order_by_worth({"a": [30.0, 27.0, 25.0, 24.0, 0.0]}, {"a": [1, 1, 1, 1]})
    assert order == [("a", 7.5)] * 4


def test_blocks_that_raise_the_loss_come_last_with_no_worth() -> None:
    losses = {"a": [10.0, 12.0, 13.0], "b": [10.0, 9.0], "c": [10.0, 11.0]}
    assert order_by_worth(losses, {"a": [1, 1], "b": [4], "c": [1]}) == [
        ("b", 0.25),
        ("a", 0.0),
        ("a", 0.0),
        ("c", 0.0),
    ]


def test_ties_keep_the_order_of_the_mapping() -> None:
    losses = {name: [4.0, 2.0, 0.0] for name in "qbza"}
    order = order_by_worth(losses, {name: [2, 2] for name in "qbza"})
    assert order == [(name, 1.0) for name in "qbza" for _ in range(2)]


def test_nothing_to_order() -> None:
    assert order_by_worth({}, {}) == []
    assert order_by_worth({"a": [3.0]}, {"a": []}) == []


def test_a_loss_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        order_by_worth({"a": [3.0, 2.0]}, {"a": [1, 1]})
