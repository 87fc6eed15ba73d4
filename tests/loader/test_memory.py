"""Giving memory back to the operating system."""

import ctypes

import pytest

from bitstack.loader import memory


@pytest.fixture(autouse=True)
def forget_the_library() -> None:
    """The C library is asked for once a process; here it changes."""
    memory._malloc_trim.cache_clear()


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
