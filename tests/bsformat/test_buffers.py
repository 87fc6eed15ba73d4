"""Memory that is handed out within a bound, and used again."""

import random

import pytest

from bsformat.buffers import Buffers

MIB = 1 << 20


def test_buffers_are_used_again() -> None:
    buffers = Buffers(8 * MIB)
    first = buffers.take(MIB, 0, MIB, mapped=True)
    assert first is not None
    assert first.view is not None
    first.view[:] = b"\x01" * MIB
    buffers.give(first)
    second = buffers.take(MIB - 1000, 0, MIB, mapped=True)
    assert second is not None
    assert second.view is not None
    assert len(second.view) == MIB - 1000
    assert set(second.view[:100]) == {1}
    assert first.view is None


def test_a_buffer_for_later_is_taken_at_once_while_there_is_room() -> None:
    """And counts as what it may become: the bound holds whatever is written to it."""
    buffers = Buffers(8 * MIB)
    first = buffers.take(MIB // 2, 0, MIB, mapped=True, later=2 * MIB)
    assert first is not None
    assert (first.cost, buffers.used) == (2 * MIB, 2 * MIB)
    buffers.give(first)
    again = buffers.take(2 * MIB, 0, MIB, mapped=True, later=2 * MIB)
    assert again is not None
    assert (again.cost, buffers.used) == (2 * MIB, 2 * MIB)  # the same one
    second = buffers.take(MIB // 4, 0, MIB // 4, mapped=True, later=2 * MIB)
    third = buffers.take(MIB // 4, 0, MIB // 4, mapped=True, later=2 * MIB)
    assert second is not None
    assert third is not None
    assert (second.cost, third.cost) == (2 * MIB, MIB // 4)  # half of the bound is reached


def test_what_somebody_holds_is_not_used_again() -> None:
    buffers = Buffers(8 * MIB)
    lease = buffers.take(MIB, 0, MIB, mapped=True)
    assert lease is not None
    assert lease.view is not None
    theirs = lease.view[:10]
    theirs[:] = b"0123456789"
    buffers.give(lease)
    other = buffers.take(MIB, 0, MIB, mapped=True)
    assert other is not None
    assert other.view is not None
    other.view[:10] = bytes(10)
    assert bytes(theirs) == b"0123456789"
    assert buffers.used == MIB


@pytest.mark.parametrize("mapped", [True, False])
def test_the_bound_holds(mapped: bool) -> None:
    draw, buffers, out = random.Random(7), Buffers(4 * MIB), []
    refused = 0
    for _ in range(3000):
        if out and draw.random() < 0.5:
            buffers.give(out.pop(draw.randrange(len(out))))
        lease = buffers.take(draw.randrange(1, 2 * MIB), draw.choice([0, 0, 300_000]), MIB, mapped=mapped)
        refused += lease is None
        out += [lease] if lease is not None else []
        kept = sum(map(len, buffers._idle))
        assert buffers.used == sum(lease.cost for lease in out)
        assert buffers.used + kept <= 4 * MIB
    assert refused > 100


def test_what_alone_is_too_large_is_had_alone() -> None:
    buffers = Buffers(MIB)
    small = buffers.take(1000, 0, MIB, mapped=True)
    assert small is not None
    assert buffers.take(5 * MIB, 0, MIB, mapped=True) is None
    buffers.give(small)
    large = buffers.take(5 * MIB, 0, MIB, mapped=True)
    assert large is not None
    assert buffers.take(1, 0, MIB, mapped=True) is None
    buffers.give(large)
    assert (buffers.used, buffers._idle) == (0, [])
