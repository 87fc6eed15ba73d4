"""How long calls take on a device: by replays of a CUDA graph, and by the wall clock where there is none.

A graph holds every call several times, one after the other as a model makes them, so that neither Python nor the launch
of the graph is counted. The calls should work on different memory that together exceeds the L2 cache.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch

Call = Callable[[], object]
_CUDA: Final[Any] = torch.cuda  # some of its classes have no types

#: Calls in a graph, at least: the gap between two replays is spread over them.
CALLS: Final = 48
#: Seconds of replays that one measurement takes, about; and bounds of their number.
SECONDS: Final = 0.15
REPLAYS: Final = (5, 25)


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call.

    Attributes:
        median, least: over the replays, each divided by its number of calls.
        spread: distance of the upper from the lower quartile.
        replays, calls: how many replays, and calls in each.
    """

    median: float
    least: float
    spread: float
    replays: int
    calls: int

    def row(self) -> dict[str, Any]:
        """For a report."""
        return {
            "microseconds": round(self.median, 3),
            "least": round(self.least, 3),
            "spread": round(self.spread, 3),
            "replays": self.replays,
            "calls": self.calls,
        }


def method(device: torch.device) -> str:
    """How `measure` measures on a device."""
    return "CUDA graph replay" if device.type == "cuda" else "wall clock"


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream that can be captured: what cuBLAS keeps for a stream is then made outside of graphs."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(_CUDA.Stream(device)):
        yield
        torch.cuda.synchronize(device)


def synchronize(device: torch.device) -> None:
    """Wait for all work on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def captured(calls: Sequence[Call], rounds: int = 1) -> torch.cuda.CUDAGraph:
    """A graph of all calls, `rounds` times over, each called once before; on a stream that is not the default."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def replayed(graph: torch.cuda.CUDAGraph, times: int) -> list[float]:
    """Milliseconds of each of several replays, started without waiting for one another."""
    events = [_CUDA.Event(enable_timing=True) for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def measure(calls: Sequence[Call], device: torch.device, *, least_calls: int = CALLS) -> Timing:
    """Time calls that differ only in the memory they work on.

    Args:
        calls: without arguments; what they return is dropped. On CUDA each can be captured after it ran once.
        least_calls: how many calls a replay makes at least.
    """
    for call in calls:
        call()
    rounds = -(-least_calls // len(calls))
    if device.type == "cuda":
        graph = captured(calls, rounds)
        replayed(graph, 2)
        (once,) = replayed(graph, 1)
        samples = replayed(graph, _times(once / 1e3))
        graph.reset()
    else:
        samples = [_looped(calls, rounds)]
        samples += [_looped(calls, rounds) for _ in range(_times(samples[0] / 1e3) - 1)]
    number = rounds * len(calls)
    each = [1e3 * sample / number for sample in samples]
    quartiles = statistics.quantiles(each, n=4)
    return Timing(statistics.median(each), min(each), quartiles[2] - quartiles[0], len(each), number)


def _times(seconds: float) -> int:
    return min(REPLAYS[1], max(REPLAYS[0], int(SECONDS / max(seconds, 1e-6))))


def _looped(calls: Sequence[Call], rounds: int) -> float:
    """Milliseconds of calling all of them, by the wall clock."""
    started = time.perf_counter()
    for _ in range(rounds):
        for call in calls:
            call()
    return 1e3 * (time.perf_counter() - started)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written ones counted, of copies far larger than the L2 cache."""
    size = 1 << 30 if device.type == "cuda" else 1 << 22
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = measure([lambda: target.copy_(source)], device, least_calls=8)
    return 2 * size / (timing.median * 1e-6)
