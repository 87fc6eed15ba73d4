"""A model that is resized while other threads use it: what their passes see, and what is left after failures."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

import bsformat
from bitstack import change
from bitstack.kernels import Table
from bitstack.loader import stream_blocks
from bitstack.packed import PackedTensor
from bsformat.errors import BudgetError, ResizeError, SourceError
from tests.loader.conftest import Load
from tests.loader.held import all_storages, held_bytes, payloads
from tests.loader.tiny import WatchedSource, fails_beyond, fetched, write_tiny

IDS = torch.tensor([[3, 41, 99, 0, 57, 40, 39, 80, 79, 12]])
SOON = 60.0
#: What copies payloads to the CPU.
Uploads: Any = type(change.uploads_to(torch.device("cpu")))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Background(threading.Thread):
    """A call in another thread; ``result`` joins it, and raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call, self._value, self._error = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(SOON)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._value


@contextmanager
def halted(model: Any) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Passes stop between the two layers of the model: (a pass has come so far, set this to let it go on)."""
    there, go = threading.Event(), threading.Event()

    def halt(*_: object) -> None:
        there.set()
        assert go.wait(SOON)

    hook = model.get_submodule("model.layers.0").register_forward_hook(halt)
    try:
        yield there, go
    finally:
        go.set()
        hook.remove()


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One of the two tiny files: how much comes with the head is nothing to these tests."""
    path = tmp_path_factory.mktemp("live") / "tiny.bstk"
    write_tiny(path, padded_head=True)
    return path.read_bytes()


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests of 1.5 KiB at a time, so that the tiny file takes several."""
    small = partial(stream_blocks, request_bytes=1536, requests=2)
    monkeypatch.setattr("bitstack.loader.resident.stream_blocks", small)


def budget(container: bsformat.Container, model: Any, count: int) -> int:
    return container.planner.resident_bytes(count) + int(model.bitstack.widening)


# --- one pass, one set of blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [50, 104])
def test_a_pass_that_has_begun_sees_the_blocks_of_before(load: Load, container: bsformat.Container, to: int) -> None:
    model, other = load(80), load(to)
    before, after = logits(model), logits(other)
    assert not torch.equal(before, after)
    with halted(model) as (there, go):
        running = Background(lambda: logits(model))
        assert there.wait(SOON)
        resize = Background(lambda: model.bitstack.resize(budget(container, model, to)))
        until(lambda: model.bitstack._shell.gate._waiting == 1)
        assert model.bitstack.plan.n_blocks == 80
        later = Background(lambda: logits(model))
        until(lambda: len(model.bitstack._shell.gate._held_back) == 1)
        go.set()
        assert torch.equal(running.result(), before)
        assert resize.result().n_blocks == to
        assert torch.equal(later.result(), after)


def test_everything_is_read_checked_and_copied_while_a_pass_runs(
    load: Load, container: bsformat.Container, source: WatchedSource
) -> None:
    """Only the swap waits."""
    model, n = load(60), len(container)
    source.forget()
    with halted(model) as (there, go):
        running = Background(lambda: logits(model))
        assert there.wait(SOON)
        seen: list[int] = []
        resize = Background(lambda: model.bitstack.resize("100%", seen.append))
        until(lambda: model.bitstack._shell.gate._waiting == 1)
        start, stop = fetched(container, 60, n)
        assert source.tiled() == (start, stop)
        assert sum(seen) == container.total_bytes - container.planner.resident_bytes(60)
        go.set()
        resize.result()
        running.result()
    assert torch.equal(logits(model), logits(load(n)))


def test_frozen_blocks_stay_over_several_passes(load: Load, container: bsformat.Container) -> None:
    model = load(80)
    before = logits(model)
    with model.bitstack.frozen():
        resize = Background(lambda: model.bitstack.resize(budget(container, model, 50)))
        until(lambda: model.bitstack._shell.gate._waiting == 1)
        for _ in range(3):
            assert torch.equal(logits(model), before)
        assert model.bitstack.plan.n_blocks == 80
        with pytest.raises(ResizeError, match="while frozen"):
            model.bitstack.resize("100%")
    assert resize.result().n_blocks == 50
    assert torch.equal(logits(model), logits(load(50)))


def test_a_resize_within_a_pass_is_refused_and_the_pass_goes_on(load: Load, source: WatchedSource) -> None:
    model = load(80)
    before, caught = logits(model), list[ResizeError]()
    source.forget()

    def resize(*_: object) -> None:
        with pytest.raises(ResizeError) as error:
            model.bitstack.resize("100%")
        caught.append(error.value)

    hook = model.get_submodule("model.layers.0").register_forward_hook(resize)
    assert torch.equal(logits(model), before)
    hook.remove()
    assert [error.reason for error in caught] == ["resize-within-pass"]
    assert source.reads == []
    assert model.bitstack.resize("100%").n_blocks > 80


def test_on_a_gpu_streams_are_waited_for_around_the_swap(
    load: Load, container: bsformat.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is one of the CPU, which says that it is not: what is done, and in which order."""
    model = load(80)
    gate, done, place = model.bitstack._shell.gate, list[tuple[str, bool]](), torch.device("cuda", 0)

    def note(what: str) -> None:
        done.append((what, gate._changer is not None))

    def synchronize(device: torch.device) -> None:
        assert device == place
        note("synchronize")

    def put(self: PackedTensor, groups: Any) -> None:
        if not done or done[-1][0] != "put":
            note("put")
        whole(self, groups)

    whole = PackedTensor.put
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "synchronize", synchronize)
        patched.setattr(torch.cuda, "empty_cache", lambda: note("empty cache"))
        patched.setattr(PackedTensor, "device", property(lambda self: place))
        patched.setattr(PackedTensor, "put", put)
        model.bitstack.resize(budget(container, model, 50))
    assert done == [
        ("synchronize", False),
        ("synchronize", True),  # what was enqueued may read what is about to change
        ("put", True),
        ("synchronize", True),  # what is enqueued from now on may read what was changed
        ("empty cache", False),
    ]
    assert torch.equal(logits(model), logits(load(50)))


# --- all or nothing --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_requests")
@pytest.mark.parametrize("missing", [1, 10, 30])
def test_a_growth_that_fails_under_generation_changes_nothing(
    load: Load, container: bsformat.Container, source: WatchedSource, missing: int
) -> None:
    n = len(container)
    model, full = load(n - 40), logits(load(n))
    before, data = logits(model), payloads(model)
    stop, seen = threading.Event(), list[torch.Tensor]()

    def use() -> None:
        while not stop.is_set():
            seen.append(logits(model))

    users = [Background(use) for _ in range(2)]
    try:
        for _ in range(3):
            source.trouble = fails_beyond(container.block(n - missing).offset)
            with pytest.raises(SourceError, match="the cable is cut"):
                model.bitstack.resize("100%")
            assert torch.equal(logits(model), before)
            assert payloads(model) == data
            source.trouble = lambda offset, length: None
            model.bitstack.resize("100%")
            assert torch.equal(logits(model), full)
            model.bitstack.resize(budget(container, model, n - 40))
    finally:
        stop.set()
    for user in users:
        user.result()
    assert seen
    assert all(torch.equal(out, before) or torch.equal(out, full) for out in seen)


@pytest.mark.parametrize("after", [0, 43])
def test_memory_that_runs_out_half_way_changes_nothing(
    load: Load, container: bsformat.Container, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    n = len(container)
    model = load(n - 44)
    before, data, storages = logits(model), payloads(model), all_storages()
    taken = 0

    class Full(Uploads):
        def __call__(self, payload: bytes | memoryview) -> torch.Tensor:
            nonlocal taken
            taken += 1
            if taken > after:
                raise MemoryError
            copied: torch.Tensor = super().__call__(payload)
            return copied

    with monkeypatch.context() as patched:
        patched.setattr(change, "uploads_to", Full)
        with pytest.raises(MemoryError):
            model.bitstack.resize("100%")
    assert taken == after + 1
    assert torch.equal(logits(model), before)
    assert (payloads(model), all_storages()) == (data, storages)
    model.bitstack.resize("100%")
    assert torch.equal(logits(model), logits(load(n)))


@pytest.mark.parametrize("to", [50, 104])
@pytest.mark.parametrize("fails", [1, 2, 6])
def test_a_swap_that_fails_half_way_is_undone(
    load: Load, container: bsformat.Container, monkeypatch: pytest.MonkeyPatch, to: int, fails: int
) -> None:
    """As it would where the device fails while the tables are written."""
    model = load(80)
    before, data = logits(model), payloads(model)
    puts = 0

    def put(self: PackedTensor, groups: Any) -> None:
        nonlocal puts
        puts += 1
        if puts == fails:
            raise RuntimeError("the device is gone")
        whole(self, groups)

    whole = PackedTensor.put
    with monkeypatch.context() as patched:
        patched.setattr(PackedTensor, "put", put)
        with pytest.raises(RuntimeError, match="the device is gone"):
            model.bitstack.resize(budget(container, model, to))
    assert puts == 2 * fails, "each was put back"
    assert model.bitstack.plan.n_blocks == 80
    assert torch.equal(logits(model), before)
    assert payloads(model) == data
    assert held_bytes(model) == model.bitstack.resident_bytes
    model.bitstack.resize(budget(container, model, to))
    assert torch.equal(logits(model), logits(load(to)))


def test_a_table_that_cannot_be_written_is_put_back(
    load: Load, container: bsformat.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding has three chains, and one table of them: the second of them fails."""
    model = load(80)
    before, calls = logits(model), 0

    def update(self: Table, chain: Any, number: int = 0) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("no memory for the table")
        whole(self, chain, number)

    whole = Table.update
    with monkeypatch.context() as patched:
        patched.setattr(Table, "update", update)
        with pytest.raises(RuntimeError, match="no memory for the table"):
            model.bitstack.resize("100%")
    assert calls == 5, "what was written, or may have been, is written back"
    assert torch.equal(logits(model), before)


def test_a_model_that_is_moved_while_it_is_resized(load: Load, container: bsformat.Container) -> None:
    model, n = load(60), len(container)
    before = logits(model)
    seen: list[int] = []

    def move(size: int) -> None:
        seen.append(size)
        if len(seen) == n - 60:  # all blocks are prepared, and not in the model yet
            model.to("cpu")  # every tensor is asked to move, whether there is anywhere to go or not

    with pytest.raises(ResizeError, match="while the model was being resized: resize again") as caught:
        model.bitstack.resize("100%", move)
    assert caught.value.reason == "resize-conflict"
    assert model.bitstack.plan.n_blocks == 60
    assert torch.equal(logits(model), before)
    model.bitstack.resize("100%")
    assert torch.equal(logits(model), logits(load(n)))


# --- one after the other ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_requests")
def test_a_shrink_does_not_wait_for_a_growth_that_hangs(
    load: Load, container: bsformat.Container, source: WatchedSource
) -> None:
    n = len(container)
    fresh = {count: logits(load(count)) for count in (50, 60)}
    model = load(60)
    assert torch.equal(logits(model), fresh[60])
    storages = all_storages()
    hanging, wake = threading.Event(), threading.Event()

    def hang(offset: int, length: int) -> None:
        if offset + length > container.block(n - 10).offset:
            hanging.set()
            assert wake.wait(SOON)

    source.trouble = hang
    growth = Background(lambda: model.bitstack.resize("100%"))
    assert hanging.wait(SOON)
    for nonsense in ("much", 1):
        with pytest.raises(BudgetError):
            model.bitstack.resize(nonsense)
    assert growth.is_alive()
    for count in (50, 60):
        if count == 60:
            source.trouble = lambda offset, length: None
        model.bitstack.resize(budget(container, model, count))
        assert torch.equal(logits(model), fresh[count])
        assert held_bytes(model) == model.bitstack.resident_bytes
    wake.set()
    with pytest.raises(ResizeError, match="another resize came later") as caught:
        growth.result()
    assert (caught.value.reason, caught.value.where) == ("resize-superseded", "tiny.bstk")
    assert model.bitstack.plan.n_blocks == 60
    del caught
    growth._error = None
    assert all_storages() == storages


def test_resizes_of_many_threads_under_generation(load: Load, container: bsformat.Container) -> None:
    """Whatever the order, the model is one of the plans that were asked for, and every pass saw one of them."""
    counts = [40, 55, 70, 90, len(container)]
    fresh = {count: logits(load(count)) for count in counts}
    model = load(counts[0])
    stop, seen = threading.Event(), list[torch.Tensor]()

    def use() -> None:
        while not stop.is_set():
            seen.append(logits(model))

    reasons: list[str] = []

    def resize(offset: int) -> int:
        won = 0
        for turn in range(20):
            try:
                model.bitstack.resize(budget(container, model, counts[(turn + offset) % len(counts)]))
                won += 1
            except ResizeError as error:
                reasons.append(error.reason)
        return won

    users, movers = [Background(use) for _ in range(2)], [Background(partial(resize, i)) for i in range(3)]
    try:
        won = sum(mover.result() for mover in movers)
    finally:
        stop.set()
    for user in users:
        user.result()
    assert won >= 1
    assert set(reasons) <= {"resize-superseded"}
    assert won + len(reasons) == 60
    assert all(any(torch.equal(out, other) for other in fresh.values()) for out in seen)
    assert torch.equal(logits(model), fresh[model.bitstack.plan.n_blocks])
    assert held_bytes(model) == model.bitstack.resident_bytes
