"""How calls are put into graphs and their times divided, with a device that only counts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitstack.tools.bench import timing


class Counting:
    """In place of torch.cuda: a graph keeps what was called while it was captured, and replaying takes 3 ms a call."""

    def __init__(self) -> None:
        self.now, self.capturing, self.replays = 0.0, None, 0
        self.eager = 0

    def call(self) -> None:
        if self.capturing is None:
            self.eager += 1
        else:
            self.capturing.calls += 1

    def graph(self, graph: Any, stream: Any) -> Any:
        counting = self

        class Capture:
            def __enter__(self) -> None:
                counting.capturing = graph

            def __exit__(self, *_: object) -> None:
                counting.capturing = None

        return Capture()

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(calls=0)

        def replay() -> None:
            self.now += 3.0 * graph.calls
            self.replays += 1

        graph.replay, graph.reset = replay, lambda: None
        return graph

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def synchronize(self) -> None:
        pass

    def current_stream(self) -> None:
        pass


def test_a_replay_is_divided_by_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()
    monkeypatch.setattr(timing, "_CUDA", counting)
    for name in ("graph", "CUDAGraph", "synchronize", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(counting, name))
    device: Any = SimpleNamespace(type="cuda")
    found = timing.measure([counting.call] * 7, device, least_calls=48)
    assert counting.eager == 7
    assert found.calls == 49
    # Slow calls are replayed the least number of times, after two replays to warm up and one to choose.
    assert found.replays == timing.REPLAYS[0]
    assert counting.replays == 2 + 1 + found.replays
    assert (found.median, found.least, found.spread) == pytest.approx((3000, 3000, 0))


def test_fast_calls_are_replayed_more_often() -> None:
    found = timing.measure([lambda: None] * 2, torch.device("cpu"), least_calls=4)
    assert (found.calls, found.replays) == (4, timing.REPLAYS[1])
    assert found.least <= found.median
