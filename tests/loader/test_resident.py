"""Growing and shrinking what a sink holds."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

import bsformat
from bitstack.loader import Resident, stream_blocks
from bsformat import Block
from bsformat.errors import IntegrityError, ResizeError, SourceError
from tests.loader.tiny import WatchedSource, fails_beyond, fetched


class Sink:
    """Holds block numbers; what is made so is in ``calls``. ``limit`` blocks fit: preparing one more is a MemoryError.

    ``prepared`` are the blocks that changes have taken, also those that came to nothing; ``kept`` counts those that no
    change has forgotten yet. ``before_exclusive`` is called where a sink would wait for those who use it.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.prepared: list[int] = []
        self.held: list[int] = []
        self.limit: int | None = None
        self.kept = self.moments = self.released = 0
        self.before_exclusive: Callable[[], object] = lambda: None

    def change(self) -> "_Change":
        return _Change(self)

    @contextmanager
    def exclusive(self, wanted: Callable[[], bool]) -> Iterator[bool]:
        self.before_exclusive()
        self.moments += 1
        yield wanted()

    def release(self) -> None:
        self.released += 1


class _Change:
    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.pending: list[tuple[str, int]] = []
        self.payloads: list[bytes] = []
        self.settled = 0

    def put(self, block: Block, payload: bytes | memoryview) -> None:
        if len(self.sink.held) + len(self.pending) == self.sink.limit:
            raise MemoryError("no more")
        assert len(payload) == block.length
        self.sink.prepared.append(block.number)
        self.sink.kept += 1
        self.payloads.append(bytes(payload))
        self.pending.append(("put", block.number))

    def drop(self, block: Block) -> None:
        self.pending.append(("drop", block.number))

    def settle(self) -> None:
        self.settled = len(self.payloads)

    def commit(self) -> None:
        assert self.settled == len(self.payloads), "what is not there yet must not be used"
        for name, number in self.pending:
            self.sink.calls.append((name, number))
            if name == "put":
                self.sink.held.append(number)
            else:
                assert self.sink.held.pop() == number

    def forget(self) -> None:
        self.sink.kept -= len(self.payloads)
        self.pending, self.payloads = [], []


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
    assert 50 in sink.prepared, "it failed before anything was read"
    assert (resident.plan, sink.calls, sink.kept) == (before, [], 0)
    source.trouble = fails_beyond(container.size)
    resident.move_to(container.planner.prefix(n))
    assert sink.held == list(range(n))


@pytest.mark.usefixtures("small_requests")
def test_of_blocks_before_a_damaged_one_nothing_stays(tiny_bytes: bytes) -> None:
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
        prepared = sink.prepared[n - 20 :]
        assert prepared == list(range(n - 20, n - 20 + len(prepared)))
        assert 0 < len(prepared) < 18
        assert len(seen) == len(prepared)
        assert (resident.plan, sink.calls, sink.kept) == (before, [], 0)
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
    assert (sink.held, sink.kept, resident.plan.n_blocks) == ([], 0, 0)
    sink.limit = None
    resident.move_to(container.planner.prefix(len(container)))
    assert sink.held == list(range(len(container)))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_giving_up_from_within_the_progress_changes_nothing(
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


# One change at a time


def test_a_resize_is_one_moment(resident: Resident, sink: Sink, container: bsformat.Container) -> None:
    for moment, count in enumerate((len(container), 50, 51, 51), start=1):
        resident.move_to(container.planner.prefix(count))
        assert (sink.moments, sink.kept) == (moment, 0)


def test_memory_is_given_back_where_there_is_some(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource
) -> None:
    resident.move_to(container.planner.prefix(60))
    assert sink.released == 0
    resident.move_to(container.planner.prefix(50))
    assert sink.released == 1
    source.trouble = fails_beyond(0)
    with pytest.raises(SourceError):
        resident.move_to(container.planner.prefix(len(container)))
    assert sink.released == 2


@pytest.mark.usefixtures("small_requests")
@pytest.mark.parametrize("later", [50, 55, 90])
def test_a_later_resize_takes_the_place_of_one_that_is_under_way(
    resident: Resident, sink: Sink, container: bsformat.Container, source: WatchedSource, later: int
) -> None:
    """The first one hangs in the network meanwhile, and finds out when it wakes."""
    n = len(container)
    resident.move_to(container.planner.prefix(60))
    limit = container.block(n - 10).offset
    hanging, wake = threading.Event(), threading.Event()

    def hang(offset: int, length: int) -> None:
        if offset + length > limit and threading.current_thread() is not threading.main_thread():
            hanging.set()
            assert wake.wait(60)

    source.trouble = hang
    errors: list[BaseException] = []

    def grow() -> None:
        try:
            resident.move_to(container.planner.prefix(n))
        except ResizeError as error:
            errors.append(error)

    thread = threading.Thread(target=grow)
    thread.start()
    assert hanging.wait(60)
    resident.move_to(container.planner.prefix(later))
    assert sink.held == list(range(later))
    assert sink.kept == 0, "what the first one had prepared is freed at once"
    wake.set()
    thread.join(60)
    assert [error.reason for error in errors] == ["resize-superseded"]  # type: ignore[attr-defined]
    assert (sink.held, sink.kept, resident.plan.n_blocks) == (list(range(later)), 0, later)
    source.trouble = fails_beyond(container.size)
    resident.move_to(container.planner.prefix(n))
    assert sink.held == list(range(n))


def test_a_resize_that_waits_for_its_moment_can_be_called_off(
    resident: Resident, sink: Sink, container: bsformat.Container
) -> None:
    resident.move_to(container.planner.prefix(60))
    turn = resident.turn()
    sink.before_exclusive = turn.call_off
    with pytest.raises(ResizeError) as caught:
        turn.move_to(container.planner.prefix(50))
    assert caught.value.reason == "resize-cancelled"
    assert str(caught.value) == "tiny.bstk: the resize was called off [resize-cancelled]"
    assert (sink.held, sink.kept, resident.plan.n_blocks) == (list(range(60)), 0, 60)
    sink.before_exclusive = lambda: None
    resident.move_to(container.planner.prefix(50))
    turn.call_off()  # too late to mean anything
    assert sink.held == list(range(50))


def test_a_failed_commit_leaves_the_former_plan(
    resident: Resident, sink: Sink, container: bsformat.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident.move_to(container.planner.prefix(60))

    def fail(self: object) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(_Change, "commit", fail)
        for count in (50, 70):
            with pytest.raises(RuntimeError, match="the device is gone"):
                resident.move_to(container.planner.prefix(count))
            assert (resident.plan.n_blocks, sink.kept) == (60, 0)
    resident.move_to(container.planner.prefix(70))
    assert sink.held == list(range(70))


def test_many_threads_at_once_end_with_what_one_of_them_wanted(
    resident: Resident, sink: Sink, container: bsformat.Container
) -> None:
    ended: list[int | None] = []

    def move(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(25):
            count = draw.randint(container.index.required, len(container))
            try:
                resident.move_to(container.planner.prefix(count))
                ended.append(count)
            except ResizeError:
                ended.append(None)

    threads = [threading.Thread(target=move, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(ended) == 100
    assert sink.held == list(range(resident.plan.n_blocks))
    assert resident.plan.n_blocks in ended
    assert sink.kept == 0
