"""How many requests at once, on links that are made up: no clock, no network."""

import random
from dataclasses import dataclass, field

import pytest

from bsformat.adapt import FIRST_BYTES, LEAST_BYTES, MOST, MOST_BYTES, Adaptive

MIB = 1 << 20


@dataclass
class Link:
    """Bytes per second in all and at most for each connection, and seconds until an answer begins."""

    rate: float
    each: float
    latency: float
    noise: float = 0.0
    limit: int = 1000  # requests at once that the server takes; more are setbacks
    draw: random.Random = field(default_factory=lambda: random.Random(3))

    def run(self, pace: Adaptive, seconds: float) -> list[int]:
        """Let requests run one after the other on each connection; gives how many ran at once, tenth by tenth."""
        history, now, received, setbacks, ended = [], 0.0, 0, 0, 0.0
        step = 0.1
        while now < seconds:
            now += step
            many = pace.requests
            share = min(self.each, self.rate / many)
            # A connection waits once for each request.
            useful = share / (1 + self.latency * share / pace.request_bytes)
            came = int(many * useful * step * (1 + self.draw.uniform(-self.noise, self.noise)))
            received += came
            ended += came / pace.request_bytes
            while ended >= 1:
                ended -= 1
                pace.ended(pace.request_bytes, pace.request_bytes / share + self.latency)
            setbacks += many > self.limit
            pace.tick(now, received, setbacks, self.latency)
            history.append(pace.requests)
        self.received = received
        return history


def test_it_goes_up_where_each_connection_is_slow() -> None:
    """A store that gives each connection 4 MB/s, on a link of 120."""
    link = Link(rate=120e6, each=4e6, latency=0.05)
    pace = Adaptive(1 << 30, 0.0)
    history = link.run(pace, 40)
    assert min(history[100:]) >= 24
    assert link.received > 0.85 * 40 * 120e6


def test_requests_that_take_no_time_grow_at_once() -> None:
    pace = Adaptive(256 * MIB, 0.0)
    sizes = []
    for _ in range(4):
        sizes.append(pace.request_bytes)
        pace.ended(pace.request_bytes, 0.004)
    assert sizes == [FIRST_BYTES, 2 * FIRST_BYTES, MOST_BYTES, MOST_BYTES]
    slow = Adaptive(256 * MIB, 0.0)
    slow.ended(slow.request_bytes, 0.05)
    slow.ended(LEAST_BYTES, 0.004)  # the last of a file says nothing
    assert slow.request_bytes == FIRST_BYTES


@pytest.mark.parametrize(("processors", "requests"), [(0, 4), (1, 2), (2, 3), (3, 4), (64, 4)])
def test_it_begins_with_what_the_processors_can_compare(processors: int, requests: int) -> None:
    assert Adaptive(256 * MIB, 0.0, processors=processors).requests == requests
    assert Adaptive(256 * MIB, 0.0, latency=0.1, processors=processors).requests == 16


@pytest.mark.parametrize(("processors", "requests"), [(1, 2), (2, 3), (64, 3)])
def test_some_requests_stay_unless_something_fails(processors: int, requests: int) -> None:
    """One alone would neither bring bytes while it is compared nor be compared while it waits."""
    link = Link(rate=2e9, each=2e9, latency=0.0002)
    pace = Adaptive(256 * MIB, 0.0, processors=processors)
    assert min(link.run(pace, 40)) == requests
    for now in range(100, 103):
        pace.tick(float(now), 0, now, 0.0002)
    assert pace.requests == 1


def test_it_stays_low_where_one_connection_takes_it_all() -> None:
    """As on loopback, where more at once are no more bytes."""
    link = Link(rate=2e9, each=2e9, latency=0.0002)
    history = link.run(Adaptive(256 * MIB, 0.0), 40)
    assert max(history) <= 8
    assert sum(history) / len(history) < 5


def test_noise_does_not_drive_it_up_or_down() -> None:
    narrow = Link(rate=12e6, each=12e6, latency=0.02, noise=0.1)
    assert sum(narrow.run(Adaptive(1 << 30, 0.0), 200)) / 2000 < 12
    wide = Link(rate=120e6, each=4e6, latency=0.05, noise=0.1)
    wide.run(Adaptive(1 << 30, 0.0), 200)
    assert wide.received > 0.75 * 200 * 120e6


@pytest.mark.parametrize("worked", [0.0, 0.03])
def test_it_stays_low_where_the_processors_have_enough_to_do(worked: float) -> None:
    """Chance says at every look that more requests brought more."""
    pace, most = Adaptive(1 << 30, 0.0, processors=2), 0
    for i in range(1, 200):
        for _ in range(10):
            pace.ended(MIB, 0.04, worked / 2)
        pace.tick(0.1 * i, int(1e6 * 2**i), 0, 0.0002)
        most = max(most, pace.requests)
    assert most <= 4 if worked else most == MOST


def test_setbacks_halve_it() -> None:
    pace = Adaptive(1 << 30, 0.0)
    pace.requests = 32
    pace.tick(0.01, 0, 1, 0.0)
    assert pace.requests == 16
    pace.tick(0.02, 0, 1, 0.0)
    assert pace.requests == 16  # the same one
    for setbacks in range(2, 12):
        pace.tick(0.1, 0, setbacks, 0.0)
    assert pace.requests == 1


def test_a_server_that_refuses_more_than_ten_at_once_is_left_in_peace() -> None:
    link = Link(rate=120e6, each=4e6, latency=0.05, limit=10)
    history = link.run(Adaptive(1 << 30, 0.0), 100)
    assert sum(many > 10 for many in history) < 0.1 * len(history)
    assert sum(history) / len(history) > 5


def test_it_comes_back_after_a_setback() -> None:
    link = Link(rate=120e6, each=4e6, latency=0.05)
    pace = Adaptive(1 << 30, 0.0)
    pace.tick(0.0, 0, 1, 0.0)
    pace._setbacks = 0
    assert pace.requests == 2
    assert link.run(pace, 60)[-1] > 12


def test_requests_grow_with_the_wait_for_an_answer() -> None:
    near, far = Adaptive(1 << 30, 0.0), Adaptive(1 << 30, 0.0)
    Link(rate=120e6, each=120e6, latency=0.0002).run(near, 20)
    Link(rate=120e6, each=120e6, latency=0.1).run(far, 20)
    assert near.request_bytes == FIRST_BYTES
    assert 4 * MIB <= far.request_bytes <= MOST_BYTES


@pytest.mark.parametrize("memory", [1, 100_000, 1 * MIB, 8 * MIB, 64 * MIB, 256 * MIB])
def test_what_is_asked_for_stays_within_half_of_the_memory(memory: int) -> None:
    pace = Adaptive(memory, 0.0)
    link = Link(rate=1e9, each=10e6, latency=0.1)
    for _ in range(30):
        link.run(pace, 1)
        assert pace.requests * pace.request_bytes <= max(memory // 2, 1)
        assert 1 <= pace.requests <= MOST
        assert pace.request_bytes >= min(LEAST_BYTES, max(1, memory // 4))


def test_a_server_that_is_far_away_is_asked_for_more_at_once() -> None:
    assert [Adaptive(1 << 30, 0.0, latency=latency).requests for latency in (0.0, 0.001, 0.05)] == [4, 4, 16]
    assert Adaptive(1 << 30, 0.0, latency=0.05, most=1).requests == 1


def test_nothing_changes_where_the_caller_is_the_slow_one() -> None:
    pace = Adaptive(1 << 30, 0.0)
    for i in range(1, 100):
        pace.tick(i * 0.2, i * MIB, 0, 0.0, full=False)
    assert pace.requests == 4
