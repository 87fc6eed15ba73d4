"""What runs a governor: ticks by hand, in a thread, with resizes that fail; what it logs; and under real pressure."""

import json
import logging
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from bitstack.loader import Decision, Driver, Governor, JsonLines, Marks, decisions, read_events
from bsformat.errors import BudgetError, SourceError

MARKS = Marks(floor=200, ceiling=1000, low=100, high=300, step=150, dwell=5, backoff=20, longest_backoff=70)


class Model:
    """Something to resize: of a machine with 2000 bytes, of which others have some."""

    def __init__(self, budget: int) -> None:
        self.resident_bytes = budget
        self.others = 0
        self.trouble: list[Exception] = []
        self.budgets: list[int] = []

    def resize(self, budget: int) -> None:
        self.budgets.append(budget)
        if self.trouble:
            raise self.trouble.pop(0)
        self.resident_bytes = budget

    def free(self) -> int:
        return 2000 - self.others - self.resident_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """The log of all governors, as lines of JSON."""
    stream, logger = StringIO(), logging.getLogger("bitstack.governor")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def ticked(driver: Driver, clock: Clock, count: int) -> list[Decision]:
    out = []
    for _ in range(count):
        clock.now += 1
        out.append(driver.tick())
    return out


def test_it_does_what_is_decided() -> None:
    model, clock = Model(1000), Clock()
    driver = Driver(Governor(MARKS, 1000), model, model.free, clock=clock)
    model.others = 950
    (decision,) = ticked(driver, clock, 1)
    assert decision.action == "shrink"
    assert model.budgets == [decision.target] == [850]
    assert model.free() == MARKS.target
    model.others = 0
    ticked(driver, clock, 20)
    assert model.budgets == [850, 1000]


@pytest.mark.parametrize("error", [SourceError("the cable is cut"), MemoryError("none left"), RuntimeError("a\nb")])
def test_a_resize_that_raises_is_survived(error: Exception, lines: StringIO) -> None:
    model, clock = Model(300), Clock()
    driver = Driver(Governor(MARKS, 300), model, model.free, clock=clock)
    model.trouble = [error]
    ticked(driver, clock, 30)
    assert (driver.governor.budget, model.resident_bytes) == (450, 450)
    assert model.budgets == [450, 450]  # the second time 20 seconds later
    (failed,) = [event for event in read_events(lines.getvalue().splitlines()) if event["event"] == "failed"]
    assert (failed["time"], failed["blocked_until"], failed["target"], failed["action"]) == (6, 26, 450, "grow")
    assert (failed["error"], failed["level"]) == (type(error).__name__, "WARNING")
    assert "\n" not in failed["text"]


def test_free_memory_that_cannot_be_told_is_survived(lines: StringIO) -> None:
    def gone() -> int:
        raise RuntimeError("the device is lost")

    model, clock = Model(300), Clock()
    driver = Driver(Governor(MARKS, 300), model, gone, clock=clock)
    assert [decision.reason for decision in ticked(driver, clock, 3)] == ["unknown"] * 3
    levels = [json.loads(line)["level"] for line in lines.getvalue().splitlines()]
    assert levels == ["INFO", "WARNING", "DEBUG", "DEBUG"]  # heard of once


def test_the_log_can_be_read_back_and_played_again(lines: StringIO) -> None:
    model, clock = Model(1000), Clock()
    driver = Driver(Governor(MARKS, 1000), model, model.free, clock=clock)
    made = []
    for others in (0, 1200, 1900, 100, 100):
        model.others = others
        model.trouble = [SourceError("no")] if others == 1900 else []
        made += ticked(driver, clock, 9)
    text = lines.getvalue() + '{"event": "decision", "ti'  # what a crash leaves
    events = list(read_events(text.splitlines()))
    assert list(decisions(events)) == made
    start = events[0]
    assert (start["event"], start["budget"]) == ("start", 1000)
    again = Governor(Marks(**start["marks"]), start["budget"])
    for event in events:
        if event["event"] == "decision":
            decision = again.decide(event["time"], event["free"], event["resident"])
            assert decision.target == event["target"]
        elif event["event"] == "resized":
            again.resized(event["time"], decision)
        elif event["event"] == "failed":
            again.failed(event["time"], decision)
    assert again.budget == driver.governor.budget
    assert {event["event"] for event in events} == {"start", "decision", "resized", "failed"}


def test_holding_is_not_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bitstack.governor")
    model, clock = Model(1000), Clock()
    driver = Driver(Governor(MARKS, 1000), model, model.free, clock=clock)
    ticked(driver, clock, 5)
    model.others = 1000
    ticked(driver, clock, 1)
    records: list[Any] = caplog.records
    assert [r.governor["event"] for r in records] == ["start", "decision", "resized"]
    assert [r.getMessage() for r in records] == [
        "governor: 200 B to 1000 B, now 1000 B; shrinks below 100 B free, grows above 300 B",
        "shrink 1000 B -> 800 B (low): 0 B free, 1000 B resident",
        "shrink done: 800 B resident after 0.000 s",
    ]


def test_a_thread_ticks_until_it_is_stopped() -> None:
    model = Model(1000)
    model.others = 950
    shrunk = threading.Event()

    class Watched(Model):
        def resize(self, budget: int) -> None:
            super().resize(budget)
            shrunk.set()

    watched = Watched(1000)
    watched.others = 950
    driver = Driver(Governor(MARKS, 1000), watched, watched.free, interval=0.001)
    with driver as started:
        assert started is driver
        assert driver.start() is driver  # once is enough
        assert shrunk.wait(30)
        assert len([t for t in threading.enumerate() if t.name == "bstk-governor"]) == 1
    assert not [t for t in threading.enumerate() if t.name == "bstk-governor"]
    watched.others, before = 1500, list(watched.budgets)
    assert watched.budgets == before
    driver.stop()  # twice is no harm
    with driver:  # and it can go on
        pass
    assert watched.budgets != before


def test_a_tick_that_fails_otherwise_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    asked = threading.Semaphore(0)

    class Broken(Model):
        @property
        def resident_bytes(self) -> int:
            asked.release()
            raise RuntimeError("no model here")

        @resident_bytes.setter
        def resident_bytes(self, value: int) -> None: ...

    model = Broken(0)
    with Driver(Governor(MARKS, 300), model, lambda: 5, interval=0.001):
        assert asked.acquire(timeout=30)
        assert asked.acquire(timeout=30)
    assert "a tick failed" in caplog.text


def test_a_log_of_others_is_no_event() -> None:
    record = logging.LogRecord("x", logging.INFO, Path(__file__).name, 1, "hello", None, None)
    line = JsonLines().format(record)
    assert json.loads(line) == {"level": "INFO", "text": "hello"}
    assert list(read_events([line, "[]", "1", "", '{"event": 3}'])) == []


def test_a_limit_is_a_resize_and_a_ceiling(lines: StringIO) -> None:
    model, clock = Model(1000), Clock()
    driver = Driver(Governor(MARKS, 1000), model, model.free, clock=clock)
    driver.limit(600)
    assert (model.resident_bytes, driver.governor.budget, driver.governor.marks.ceiling) == (600, 600, 600)
    assert {decision.reason for decision in ticked(driver, clock, 20)} == {"ceiling"}  # there is room, and it stays
    model.others = 1500
    ticked(driver, clock, 1)
    assert model.resident_bytes < 600
    model.others = 0
    ticked(driver, clock, 60)
    assert model.resident_bytes == 600
    driver.limit(900)
    assert model.resident_bytes == 900
    starts = [event for event in read_events(lines.getvalue().splitlines()) if event["event"] == "start"]
    assert [event["marks"]["ceiling"] for event in starts] == [1000, 600, 900]


def test_a_limit_that_cannot_be_set_leaves_the_ceiling() -> None:
    model, clock = Model(300), Clock()
    driver = Driver(Governor(MARKS, 300), model, model.free, clock=clock)
    with pytest.raises(BudgetError, match="above the ceiling"):
        driver.limit(100)  # below the floor
    assert model.budgets == []
    model.trouble = [SourceError("the cable is cut")]
    with pytest.raises(SourceError):
        driver.limit(800)
    assert (driver.governor.budget, driver.governor.marks) == (300, MARKS)


def test_a_limit_comes_through_whatever_a_tick_does_meanwhile() -> None:
    model, clock = Model(300), Clock()
    driver = Driver(Governor(MARKS, 300), model, model.free, clock=clock)
    ticked(driver, clock, 5)
    resize, others = model.resize, threading.Event()

    def resized(budget: int) -> None:
        resize(budget)
        if not others.is_set():  # a tick that had decided to grow resizes after the limit did
            others.set()
            clock.now += 1
            thread = threading.Thread(target=driver.tick)
            thread.start()
            thread.join()

    model.resize = resized  # type: ignore[method-assign]
    driver.limit(250)
    assert model.budgets == [250, 450, 250]
    assert (model.resident_bytes, driver.governor.budget, driver.governor.marks.ceiling) == (250, 250, 250)
