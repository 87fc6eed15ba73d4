"""Giving up reads that nobody waits for any more: a thread reads on behalf of something that may end before it does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_local = threading.local()


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
