"""Blocks that are compared while they come."""

import random

import pytest
from blake3 import blake3

from bsformat.comparing import Comparing

LENGTHS = [1, 64, 3 << 16, 1 << 18, 1_234_567, 700_001]


def made(seed: int = 0) -> tuple[bytearray, list[tuple[int, int]], list[bytes]]:
    """Blocks with gaps between them, as alignment leaves them."""
    draw, data, bounds = random.Random(seed), bytearray(), []
    for length in LENGTHS:
        bounds.append((len(data), len(data) + length))
        data += draw.randbytes(length) + bytes(-length % 64)
    return data, bounds, [blake3(data[a:b]).digest() for a, b in bounds]


@pytest.mark.parametrize("step", [1 << 12, 100_003, 1 << 19, 1 << 23])
def test_whole_blocks_in_any_steps(step: int) -> None:
    data, bounds, digests = made()
    out = bytearray(len(data))
    comparing = Comparing(memoryview(out), bounds, digests)
    for at in range(0, len(data), step):
        assert not comparing.sound
        out[at : at + step] = data[at : at + step]
        comparing.there(min(at + step, len(data)))
    assert comparing.sound


@pytest.mark.parametrize("block", range(len(LENGTHS)))
def test_one_bit(block: int) -> None:
    data, bounds, digests = made()
    data[bounds[block][1] - 1] ^= 1
    comparing = Comparing(memoryview(data), bounds, digests)
    for at in range(0, len(data), 1 << 19):
        comparing.there(at)
    comparing.there(len(data))
    assert not comparing.sound


def test_what_was_taken_back_after_it_was_hashed_is_not_sound() -> None:
    """The bytes that come in its place were never looked at."""
    data, bounds, digests = made()
    comparing = Comparing(memoryview(data), bounds, digests)
    comparing.there(2_000_000)
    comparing.there(1000)
    data[5000] ^= 1
    comparing.there(len(data))
    assert not comparing.sound


def test_what_was_taken_back_before_it_was_hashed_is() -> None:
    data, bounds, digests = made()
    comparing = Comparing(memoryview(data), bounds, digests)
    comparing.there(bounds[3][1] + 90_000)
    comparing.there(bounds[3][1])
    comparing.there(len(data))
    assert comparing.sound


def test_nothing_to_compare() -> None:
    assert Comparing(memoryview(b""), [], []).sound
