"""Growing in the background: what is used meanwhile, what is read, and how it ends."""

import dataclasses
import gc
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack import change
from bitstack.loader import Growth, growth, stream_blocks, useful_plan
from bsformat import Curve, Plan
from bsformat.errors import BudgetError, IntegrityError, ResizeError, SourceError
from bsformat.registry import ALIGNMENT
from tests.loader.held import held_bytes, payloads
from tests.loader.tiny import WatchedSource, fails_beyond, write_tiny

IDS = torch.tensor([[3, 41, 99, 0, 57, 40, 39, 80, 79, 12]])
SOON = 60.0
#: What copies payloads to the CPU.
Uploads: Any = type(change.uploads_to(torch.device("cpu")))
FIRST = 60


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny file with a head that is larger than the first read, so that reads are those of the blocks."""
    path = tmp_path_factory.mktemp("growth") / "tiny.bstk"
    write_tiny(path, padded_head=True)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests of 1.5 KiB at a time, and about ten steps."""
    small = partial(stream_blocks, request_bytes=1536, requests=2)
    monkeypatch.setattr("bitstack.loader.resident.stream_blocks", small)
    monkeypatch.setattr(growth, "STEP_SHARE", 0.04)


@pytest.fixture(scope="session")
def fresh(tiny_bytes: bytes) -> Callable[[int], torch.Tensor]:
    """What a model that was loaded with so many blocks computes."""
    known: dict[int, torch.Tensor] = {}
    container = bsformat.open(bsformat.MemorySource(tiny_bytes))
    model = bitstack.load(container, "100%", "cpu")

    def at(count: int) -> torch.Tensor:
        if count not in known:
            model.bitstack.resize(container.planner.resident_bytes(count) + model.bitstack.widening)
            known[count] = logits(model)
        return known[count]

    return at


@pytest.fixture
def gate(container: bsformat.Container, source: WatchedSource) -> Iterator[threading.Event]:
    """Reads of the second half of what comes after the first blocks hang until this is set."""
    event = threading.Event()
    limit = container.block((FIRST + len(container)) // 2).offset

    def hang(offset: int, length: int) -> None:
        if offset + length > limit:
            assert event.wait(SOON)

    source.trouble = hang
    yield event
    event.set()


@pytest.fixture
def start(container: bsformat.Container) -> Callable[..., Any]:
    """`bitstack.load` of everything, beginning with the first blocks."""
    widening = bitstack.load(bsformat.open(container.source), "100%", "cpu").bitstack.widening

    def load(**options: Any) -> Any:
        first = container.planner.resident_bytes(FIRST) + widening
        return bitstack.load(container, "100%", "cpu", progressive=first, **options)

    return load


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def ended(model: Any) -> Growth:
    """The growth of a model, once its thread is through."""
    (thread,) = [t for t in threading.enumerate() if t.name == "bstk-growth"] or [None]
    if thread is not None:
        thread.join(SOON)
        assert not thread.is_alive()
    assert model.bitstack.growth.done
    found: Growth = model.bitstack.growth
    return found


# --- all is well -----------------------------------------------------------------------------------------------------


def test_a_model_is_used_while_it_grows(
    start: Callable[..., Any],
    container: bsformat.Container,
    source: WatchedSource,
    gate: threading.Event,
    fresh: Callable[[int], torch.Tensor],
) -> None:
    source.forget()
    read, steps = list[int](), list[Plan]()
    model = start(progress=read.append, watch=steps.append)
    elastic = model.bitstack
    assert elastic.growth.started.n_blocks == FIRST
    until(lambda: elastic.plan.n_blocks > FIRST)
    assert not elastic.growth.done
    with elastic.frozen():
        there = elastic.plan.n_blocks
        assert FIRST < there < len(container)
        assert torch.equal(logits(model), fresh(there))
    with pytest.raises(TimeoutError, match=rf"still growing after 0.01 s: \d+ of {len(container)} blocks"):
        elastic.growth.wait(0.01)
    gate.set()
    assert elastic.growth.wait(SOON) == elastic.plan == elastic.growth.target
    assert elastic.plan.n_blocks == len(container)
    assert torch.equal(logits(model), fresh(len(container)))
    # Each byte once, but for the padding between what it began with and the rest.
    reads, everything = sorted(source.reads), container.plan("100%")
    gaps = [offset - sum(before) for before, (offset, _) in pairwise(reads)]
    assert (reads[0][0], sum(reads[-1])) == (everything.offset, everything.offset + everything.length)
    assert 0 <= sum(gaps) == max(gaps) < ALIGNMENT
    assert sum(read) == container.total_bytes
    ended(model)
    assert source.held == 0, "nothing that was read is kept but in the model"
    counts = [plan.n_blocks for plan in steps]
    assert counts == sorted(set(counts))
    assert len(counts) > 5
    assert counts[-1] == len(container)
    assert elastic.growth.error is None
    assert held_bytes(model) == elastic.resident_bytes


def test_every_pass_while_it_grows_is_that_of_one_step(
    start: Callable[..., Any], container: bsformat.Container, fresh: Callable[[int], torch.Tensor]
) -> None:
    more, steps = threading.Semaphore(0), [FIRST]

    def watch(plan: Plan) -> None:
        steps.append(plan.n_blocks)
        assert more.acquire(timeout=SOON)

    model = start(watch=watch)
    seen: list[torch.Tensor] = []
    while not model.bitstack.growth.done:
        seen.append(logits(model))
        more.release()
    seen.append(logits(model))
    assert len(seen) > 5
    assert all(any(torch.equal(out, fresh(count)) for count in steps) for out in seen)
    assert torch.equal(seen[-1], fresh(len(container)))


def test_it_generates_all_the_way(start: Callable[..., Any], gate: threading.Event) -> None:
    model = start()
    threading.Timer(0.05, gate.set).start()
    with torch.inference_mode():
        out = model.generate(IDS, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
    assert out.shape == (1, IDS.shape[1] + 12)
    assert model.bitstack.growth.wait(SOON) == model.bitstack.plan


def test_growing_later(container: bsformat.Container, fresh: Callable[[int], torch.Tensor]) -> None:
    model = bitstack.load(container, "60%", "cpu")
    assert model.bitstack.growth is None
    grown = model.bitstack.grow("90%")
    assert grown is model.bitstack.growth
    assert grown.wait(SOON) == container.plan("90%")
    # Less than there is: done in one step.
    model.bitstack.grow("50%").wait(SOON)
    assert model.bitstack.plan == container.plan("50%")
    assert torch.equal(logits(model), fresh(model.bitstack.plan.n_blocks))


@pytest.mark.parametrize("progressive", [True, "100%", "60%"])
def test_where_there_is_nothing_to_grow_to(container: bsformat.Container, progressive: bool | str) -> None:
    model = bitstack.load(container, "25%", "cpu", progressive=progressive)
    assert model.bitstack.growth.wait(SOON) == model.bitstack.plan == container.plan("25%")


@pytest.mark.parametrize("progressive", ["much", "1B"])
def test_nonsense_is_refused(container: bsformat.Container, progressive: str) -> None:
    with pytest.raises(BudgetError):
        bitstack.load(container, "100%", "cpu", progressive=progressive)
    model = bitstack.load(container, "50%", "cpu")
    with pytest.raises(BudgetError):
        model.bitstack.grow(progressive)
    assert model.bitstack.growth is None


# --- all is not well -------------------------------------------------------------------------------------------------


def test_a_stream_that_fails_leaves_what_there_is(
    start: Callable[..., Any],
    container: bsformat.Container,
    source: WatchedSource,
    fresh: Callable[[int], torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source.trouble = fails_beyond(container.block(85).offset)
    model = start()
    failed = ended(model)
    with pytest.raises(SourceError, match="the cable is cut") as caught:
        failed.wait()
    assert caught.value is failed.error
    there = model.bitstack.plan.n_blocks
    assert FIRST < there < 85
    assert torch.equal(logits(model), fresh(there))
    assert held_bytes(model) == model.bitstack.resident_bytes
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "bitstack.loader.growth")
    assert record.getMessage() == f"{failed.error}; the model stays at {there} of {len(container)} blocks"
    source.trouble = lambda offset, length: None
    model.bitstack.resize("100%")
    assert torch.equal(logits(model), fresh(len(container)))


def test_a_damaged_block_is_never_used(
    tiny_bytes: bytes, fresh: Callable[[int], torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with bsformat.open(bsformat.MemorySource(tiny_bytes)) as sound:
        offset = sound.block(90).offset
    data = bytearray(tiny_bytes)
    data[offset] ^= 1
    model = bitstack.load(bsformat.open(bsformat.MemorySource(bytes(data))), "100%", "cpu", progressive="40%")
    with pytest.raises(IntegrityError, match="block 90 "):
        model.bitstack.growth.wait(SOON)
    there = model.bitstack.plan.n_blocks
    assert there <= 90
    assert torch.equal(logits(model), fresh(there))
    ended(model)


@pytest.mark.parametrize("error", [MemoryError("no more"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_other_failures_are_one_line_too(
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    fresh: Callable[[int], torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    taken = 0

    class Failing(Uploads):
        def __call__(self, payload: bytes | memoryview) -> torch.Tensor:
            nonlocal taken
            taken += 1
            if taken == 85:
                raise error
            copied: torch.Tensor = super().__call__(payload)
            return copied

    monkeypatch.setattr(change, "uploads_to", Failing)
    model = start()
    with pytest.raises(ResizeError, match="growing ended before its target: ") as caught:
        model.bitstack.growth.wait(SOON)
    assert caught.value.reason == "resize-failed"
    assert "\n" not in str(caught.value)
    assert ("out of memory" in str(caught.value)) == isinstance(error, MemoryError)
    assert caught.value.__cause__ is error
    ended(model)
    assert len(caplog.records) == 1
    assert torch.equal(logits(model), fresh(model.bitstack.plan.n_blocks))
    model.bitstack.resize("100%")


@pytest.mark.parametrize("which", ["progress", "watch"])
def test_a_callback_that_fails_ends_it(start: Callable[..., Any], which: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> None:
        if threading.current_thread().name == "bstk-growth":
            raise ZeroDivisionError("whoops")

    model = start(**{which: fail})
    with pytest.raises(ResizeError, match="ZeroDivisionError: whoops"):
        model.bitstack.growth.wait(SOON)
    ended(model)


# --- called off ------------------------------------------------------------------------------------------------------


def test_cancelling(
    start: Callable[..., Any],
    container: bsformat.Container,
    gate: threading.Event,
    fresh: Callable[[int], torch.Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = start()
    until(lambda: model.bitstack.plan.n_blocks > FIRST)
    there = model.bitstack.growth.cancel()
    assert model.bitstack.growth.done, "although its read hangs"
    with pytest.raises(ResizeError, match="called off") as caught:
        model.bitstack.growth.wait()
    assert caught.value.reason == "resize-cancelled"
    gate.set()
    ended(model)
    assert model.bitstack.plan == there
    assert torch.equal(logits(model), fresh(there.n_blocks))
    assert held_bytes(model) == model.bitstack.resident_bytes
    assert model.bitstack.growth.cancel() == there
    assert caplog.records == []
    model.bitstack.resize("100%")
    assert torch.equal(logits(model), fresh(len(container)))


def test_cancelling_within_frozen(start: Callable[..., Any], gate: threading.Event) -> None:
    """Its thread waits for the passes to end, and the passes for it: neither does."""
    model = start()
    with model.bitstack.frozen():
        gate.set()
        until(lambda: model.bitstack._shell.gate._waiting == 1)
        with pytest.raises(ResizeError, match="nor wait for it to grow") as caught:
            model.bitstack.growth.wait()
        assert caught.value.reason == "resize-within-pass"
        there = model.bitstack.growth.cancel()
        ended(model)
    assert model.bitstack.plan == there


def test_closing_ends_it(start: Callable[..., Any], gate: threading.Event) -> None:
    model = start()
    model.bitstack.close()
    assert isinstance(model.bitstack.growth.error, ResizeError)
    gate.set()
    ended(model)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("to", ["40%", "100%"])
def test_a_resize_takes_its_place(
    start: Callable[..., Any], container: bsformat.Container, gate: threading.Event, source: WatchedSource, to: str
) -> None:
    model = start()
    until(lambda: model.bitstack.plan.n_blocks > FIRST)
    source.trouble = lambda offset, length: None
    plan = model.bitstack.resize(to)
    with pytest.raises(ResizeError, match="another resize came later"):
        model.bitstack.growth.wait()
    gate.set()
    ended(model)
    assert model.bitstack.plan == plan
    assert plan.n_blocks == container.plan(to).n_blocks
    other = bitstack.load(container, to, "cpu")
    assert payloads(model) == payloads(other)


def test_nobody_is_kept_by_a_growth_that_is_over(start: Callable[..., Any]) -> None:
    model = start()
    model.bitstack.growth.wait(SOON)
    ended(model)
    handle = model.bitstack.growth
    assert handle._turn._change._after == handle._turn._change._before == {}
    del model, handle
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is Growth]


_ENDS = """
import sys, threading, time
import bitstack, bsformat
class Slow(bsformat.MemorySource):
    def get(self, offset, length):
        if offset > 50_000:
            there.set()
            time.sleep(0.3)
        return super().get(offset, length)
there = threading.Event()
with open(sys.argv[1], "rb") as file:
    source = Slow(file.read(), "slow.bstk")
from bitstack.loader import stream
stream.REQUEST_BYTES = 512
stream.stream_blocks.__kwdefaults__.update(request_bytes=512, requests=1)
model = bitstack.load(source, "100%", "cpu", progressive="40%")
assert there.wait(60)
def hold():
    with model.bitstack.frozen():
        held.set()
        time.sleep(600)
held = threading.Event()
if sys.argv[2:] == ["held"]:
    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(60)
assert not model.bitstack.growth.done
"""


@pytest.mark.parametrize("held", [[], ["held"]], ids=["", "held"])
def test_a_program_may_end_while_a_model_grows(tmp_path: Path, tiny_bytes: bytes, held: list[str]) -> None:
    """Also if a thread that nobody waits for holds the blocks."""
    path = tmp_path / "tiny.bstk"
    path.write_bytes(tiny_bytes)
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", _ENDS, str(path), *held],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- what to begin with ----------------------------------------------------------------------------------------------


def test_without_a_curve_every_chain_has_a_block(container: bsformat.Container) -> None:
    everything = container.planner.prefix(len(container))
    plan = useful_plan(container, everything)
    chains = container.index.chain.tolist()
    assert set(chains[: plan.n_blocks]) == set(chains)
    assert plan.resident_bytes >= 0.3 * container.total_bytes
    before = container.planner.prefix(plan.n_blocks - 1)
    assert set(chains[: plan.n_blocks - 1]) != set(chains) or before.resident_bytes < 0.3 * container.total_bytes
    small = container.planner.prefix(container.index.required)
    assert useful_plan(container, small) == small


def _curve(*points: tuple[int, float]) -> Curve:
    return Curve("perplexity", "a text", 1000, 100, 10.0, points)


@pytest.mark.parametrize(
    ("points", "target", "expected"),
    [
        # At most twice the value of the target: at a point; between two; at the first.
        ([(50, 80.0), (60, 40.0), (100, 20.0)], 100, 60),
        ([(50, 60.0), (60, 30.0), (100, 20.0)], 100, (50, 60)),
        ([(50, 39.0), (100, 20.0)], 100, 50),
        # Beyond the last point the last value holds.
        ([(50, 80.0), (60, 40.0), (90, 20.0)], 104, 60),
        # A target between two points has a value between them: here 40, so that 80 will do.
        ([(50, 80.0), (100, 20.0)], (50, 100), 50),
        # What is no perplexity is no point.
        ([(45, float("inf")), (46, -1.0), (47, 0.0), (48, float("nan")), (50, 39.0), (100, 20.0)], 100, 50),
    ],
)
def test_a_curve_says_what_is_useful(
    container: bsformat.Container,
    monkeypatch: pytest.MonkeyPatch,
    points: list[tuple[int, float]],
    target: int | tuple[int, int],
    expected: int | tuple[int, int],
) -> None:
    monkeypatch.setattr(container, "metadata", dataclasses.replace(container.metadata, curves=(_curve(*points),)))
    if isinstance(target, tuple):
        sizes = [container.planner.resident_bytes(n) for n in target]
        target = container.planner.plan(sum(sizes) // 2).n_blocks
    plan = useful_plan(container, container.planner.prefix(target))
    if isinstance(expected, tuple):
        assert expected[0] < plan.n_blocks < expected[1]
    else:
        assert plan.n_blocks == expected


@pytest.mark.parametrize("points", [[], [(103, 20.0)], [(9999, 1.0)]])
def test_a_curve_that_says_nothing_of_the_target(
    container: bsformat.Container, monkeypatch: pytest.MonkeyPatch, points: list[tuple[int, float]]
) -> None:
    target = container.planner.prefix(100)
    expected = useful_plan(container, target)
    monkeypatch.setattr(container, "metadata", dataclasses.replace(container.metadata, curves=(_curve(*points),)))
    assert useful_plan(container, target) == expected
