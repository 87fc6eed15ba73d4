"""Giving memory back to the operating system."""

import ctypes
import subprocess
import sys
from functools import cache

import pytest

from bitstack.loader import memory


@pytest.fixture(autouse=True)
def forget_the_library() -> None:
    """The C library is asked for once a process; here it changes."""
    memory._malloc_trim.cache_clear()


@pytest.fixture(autouse=True)
def forget_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once a process; here again and again, and never the real one."""
    monkeypatch.setattr(memory, "steady_heap", cache(memory.steady_heap.__wrapped__))


def test_trims_through_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Library:
        malloc_trim = staticmethod(calls.append)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    memory.release_pages()
    memory.release_pages()
    assert calls == [0, 0]
    memory._malloc_trim.cache_clear()


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_does_nothing_where_there_is_no_such_call(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail(name: str | None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    memory.release_pages()
    memory._malloc_trim.cache_clear()


def test_the_heap_becomes_steady_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(what: int, value: int) -> int:
            calls.append((what, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert not memory.heap_is_steady()
    assert memory.steady_heap()
    assert memory.steady_heap()
    assert memory.heap_is_steady()
    assert calls == [(-3, 1 << 20)]  # M_MMAP_THRESHOLD


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail(name: str | None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert not memory.steady_heap()
    assert memory.heap_is_steady()  # there is nothing more to be told


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_steady_heap_gives_back_what_is_freed() -> None:
    """In a process of its own: tensors of many sizes, each a little larger than the last, as a cache that grows."""
    program = """
import torch
from bitstack.loader import steady_heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

assert steady_heap()
start, most, pins = resident(), 0, []
layers = [torch.ones(1 << 18) for _ in range(16)]
for step in range(1, 40):
    work = torch.ones(3 << 20)
    for number in range(16):
        layers[number] = torch.ones((1 << 18) + step * 4096)
        pins.append(torch.ones(64))
    del work
    most = max(most, resident() - start)
print(most)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    # As glibc is by default, it holds 17 MiB more than is in use; here 1.3 MiB.
    assert int(done.stdout) < 16 * 4 * ((1 << 18) + 40 * 4096) + (8 << 20)
