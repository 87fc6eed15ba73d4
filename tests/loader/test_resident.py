"""Growing and shrinking what a sink holds."""

import itertools
import random
from functools import partial

import pytest

import bsformat
from bitstack.loader import Resident, stream_blocks
from bsformat import Block
from bsformat.errors import IntegrityError, SourceError
from tests.loader.tiny import WatchedSource, fails_beyond, fetched


class Sink:
    """Holds block numbers; every call is in ``calls``. ``limit`` blocks fit: the next one is a MemoryError."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.held: list[int] = []
        self.limit: int | None = None

    def put(self, block: Block, payload: bytes | memoryview) -> None:
        if len(self.held) == self.limit:
            raise MemoryError("no more")
        assert len(payload) == block.length
        self.calls.append(("put", block.number))
        self.held.append(block.number)

    def drop(self, block: Block) -> None:
        assert self.held, "nothing is left to drop"
        self.calls.append(("drop", block.number))
        assert self.held.pop() == block.number


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests of 1.5 KiB at a time, so that the tiny file takes several."""
    small = partial(stream_blocks, request_bytes=1536, requests=2)
    monkeypatch.setattr("bitstack.loader.resident.stream_blocks", small)


@pytest.fixture
def resident(container: bsformat.Container, sink: Sink) -> Resident:
    return Resident(container, sink)


def test_nothing_is_resident_at_first(resident: Resident, source: WatchedSource) -> None:
    assert (resident.plan.n_blocks, resident.plan.resident_bytes, resident.plan.length) == (0, 0, 0)
    assert source.reads == []


def test_growing_puts_the_blocks_in_order(resident: Resident, sink: Sink, container: bsformat.Container) -> None:
    for count in (container.index.required, 60, 61, len(container)):
        plan = container.planner.prefix(count)
        resident.move_to(plan)
        assert resident.plan == plan
        assert sink.held == list(range(count))
    assert {name for name, _ in sink.calls} == {"put"}


def test_shrinking_drops_the_last_block_first_and_reads_nothing(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource
) -> None:
    n = len(container)
    resident.move_to(container.planner.prefix(n))
    source.forget()
    sink.calls.clear()
    resident.move_to(container.planner.prefix(n - 30))
    assert sink.calls == [("drop", number) for number in range(n - 1, n - 31, -1)]
    assert resident.plan == container.planner.prefix(n - 30)
    assert source.reads == []


def test_growing_reads_only_the_difference(
    resident: Resident, container: bsformat.Container, source: WatchedSource
) -> None:
    counts = [container.index.required, 50, 51, 90, len(container)]
    resident.move_to(container.planner.prefix(counts[0]))
    for before, after in itertools.pairwise(counts):
        source.forget()
        resident.move_to(container.planner.prefix(after))
        start, stop = fetched(container, before, after)
        assert source.tiled() == ((start, stop) if start < stop else (0, 0))


def test_the_same_prefix_again_does_nothing(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource
) -> None:
    resident.move_to(container.planner.plan(container.planner.resident_bytes(60)))
    source.forget()
    sink.calls.clear()
    seen: list[int] = []
    # Another budget, too small for one block more: the plan says so, and nothing moves.
    plan = container.planner.plan(container.planner.resident_bytes(60) + 1)
    resident.move_to(plan, seen.append)
    assert resident.plan == plan
    assert (source.reads, sink.calls, sum(seen)) == ([], [], 0)


def test_progress_counts_resident_bytes(resident: Resident, container: bsformat.Container) -> None:
    large, small = container.planner.prefix(len(container)), container.planner.prefix(50)
    seen: list[int] = []
    resident.move_to(large, seen.append)
    assert sum(seen) == large.resident_bytes
    seen.clear()
    resident.move_to(small, seen.append)
    assert sum(seen) == large.resident_bytes - small.resident_bytes


@pytest.mark.usefixtures("small_requests")
def test_bytes_in_memory_are_bounded_while_growing(
    resident: Resident, container: bsformat.Container, source: WatchedSource
) -> None:
    resident.move_to(container.planner.prefix(len(container)))
    assert len(source.reads) > 6
    assert source.most_held <= 2 * 1536
    assert source.held == 0


@pytest.mark.usefixtures("small_requests")
def test_a_failed_growth_leaves_the_former_prefix(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource
) -> None:
    n = len(container)
    before = container.planner.prefix(50)
    resident.move_to(before)
    sink.calls.clear()
    source.trouble = fails_beyond(container.block(n - 10).offset)
    with pytest.raises(SourceError, match="the cable is cut"):
        resident.move_to(container.planner.prefix(n))
    assert ("put", 50) in sink.calls, "it failed before anything was added"
    assert resident.plan == before
    assert sink.held == list(range(50))
    source.trouble = fails_beyond(container.size)
    resident.move_to(container.planner.prefix(n))
    assert sink.held == list(range(n))


@pytest.mark.usefixtures("small_requests")
def test_blocks_put_before_a_damaged_one_are_dropped_again(tiny_bytes: bytes) -> None:
    with bsformat.open(bsformat.MemorySource(tiny_bytes)) as sound:
        n = len(sound)
        offset = sound.block(n - 3).offset
    data = bytearray(tiny_bytes)
    sink, source = Sink(), WatchedSource(data)  # the source sees what is changed in `data`
    with bsformat.open(source) as container:
        resident = Resident(container, sink)
        before = container.planner.prefix(n - 20)
        resident.move_to(before)
        sink.calls.clear()
        seen: list[int] = []
        data[offset] ^= 1
        with pytest.raises(IntegrityError, match=f"block {n - 3} "):
            resident.move_to(container.planner.prefix(n), seen.append)
        puts = [number for name, number in sink.calls if name == "put"]
        drops = [number for name, number in sink.calls if name == "drop"]
        assert puts == list(range(n - 20, n - 20 + len(puts)))
        assert 0 < len(puts) < 18
        assert drops == puts[::-1]
        assert len(seen) == len(puts)
        assert resident.plan == before
        data[offset] ^= 1
        resident.move_to(container.planner.prefix(n))
        assert sink.held == list(range(n))


def test_a_sink_that_is_full_keeps_what_it_had(resident: Resident, sink: Sink, container: bsformat.Container) -> None:
    before = container.planner.prefix(50)
    resident.move_to(before)
    sink.limit = 70
    with pytest.raises(MemoryError):
        resident.move_to(container.planner.prefix(len(container)))
    assert resident.plan == before
    assert sink.held == list(range(50))
    resident.move_to(container.planner.prefix(70))
    assert sink.held == list(range(70))


def test_a_first_load_that_fails_can_be_tried_again(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource
) -> None:
    required = container.index.required
    sink.limit = required + 5
    with pytest.raises(MemoryError):
        resident.move_to(container.planner.prefix(len(container)))
    # What every prefix needs is not dropped: nothing could take its place.
    assert sink.held == list(range(required))
    assert resident.plan.n_blocks == 0
    sink.held.clear()
    sink.limit = None
    resident.move_to(container.planner.prefix(len(container)))
    assert sink.held == list(range(len(container)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_giving_up_from_within_the_progress_rolls_back(
    resident: Resident, sink: Sink, container: bsformat.Container, error: type[BaseException]
) -> None:
    before = container.planner.prefix(50)
    resident.move_to(before)
    calls = 0

    def give_up(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 8:
            raise error

    with pytest.raises(error):
        resident.move_to(container.planner.prefix(len(container)), give_up)
    assert resident.plan == before
    assert sink.held == list(range(50))
    assert calls == 8


def test_a_progress_that_fails_while_shrinking_leaves_a_true_plan(
    resident: Resident, sink: Sink, container: bsformat.Container
) -> None:
    resident.move_to(container.planner.prefix(len(container)))

    def fail(_: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        resident.move_to(container.planner.prefix(60), fail)
    assert sink.held == list(range(resident.plan.n_blocks))


def test_any_sequence_of_moves_holds_exactly_the_prefix(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource
) -> None:
    draw = random.Random(3)
    expected = 0
    source.forget()
    for _ in range(200):
        before, count = resident.plan.n_blocks, draw.randint(container.index.required, len(container))
        resident.move_to(container.planner.prefix(count))
        assert sink.held == list(range(count))
        if count > before:
            start, stop = fetched(container, before, count)
            expected += max(stop - start, 0)
    assert sum(length for _, length in source.reads) == expected
