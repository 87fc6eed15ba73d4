"""Giving up reads that nobody waits for any more: a thread reads on behalf of something that may end before it does."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from .errors import SourceError

_Result = TypeVar("_Result")
_local = threading.local()
#: Seconds between two looks whether what runs in a loop is wanted still.
_LOOK: Final = 0.1


class Stop:
    """Tells threads that what they read for has ended. For several threads."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """From now on no read in `reading_for` this waits for anything: they end with an error that nobody sees."""
        from . import watchdog

        self._event.set()
        watchdog.end(self)

    @property
    def is_set(self) -> bool:
        """Whether it was."""
        return self._event.is_set()


@contextmanager
def reading_for(stop: Stop) -> Iterator[None]:
    """Within it, reads of this thread end when ``stop`` is set."""
    _local.stop = stop
    try:
        yield
    finally:
        _local.stop = None


def current_stop() -> Stop | None:
    """What ends the reads of this thread, if anything does."""
    return getattr(_local, "stop", None)


def check_wanted() -> None:
    """End what this thread reads if nobody waits for it any more.

    Raises:
        SourceError: nobody does, nor sees this error.
    """
    stop = current_stop()
    if stop is not None and stop.is_set:
        raise SourceError("given up: it is not wanted any more")


def run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What a coroutine gives, or raises, run in a loop of another thread; it is ended if nobody waits for it any more.

    Raises:
        SourceError: as `check_wanted`.
    """
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except BaseException:  # the loop has ended
        work.close()
        raise
    try:
        while not future.done():
            check_wanted()
            concurrent.futures.wait([future], _LOOK)
        return future.result()
    except BaseException:
        future.cancel()
        raise
