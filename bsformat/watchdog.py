"""Ending connections on which something takes too long in all, though no single wait does.

A timeout of a socket bounds each wait for a byte. A server that sends a byte now and then would keep a reader for as
long as it likes: so one thread for all connections shuts down those whose time is over.
"""

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final

from .stopping import Stop, current_stop

#: Seconds that the thread stays when there is nothing to watch.
_LINGER: Final = 2.0


class Watch:
    """Within it, a socket is shut down if it takes more than some seconds.

    Attributes:
        ended: whether that happened.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.sock, self.due, self.ended = sock, time.monotonic() + max(0.0, seconds), False
        self.stop = current_stop()

    def __enter__(self) -> "Watch":
        _add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self)


_changed = threading.Condition()
_watched: set[Watch] = set()
_thread: threading.Thread | None = None
_wakes = 0.0


def _add(watch: Watch) -> None:
    global _thread
    with _changed:
        if watch.stop is not None and watch.stop.is_set:
            _end(watch)
            return
        _watched.add(watch)
        if _thread is None or not _thread.is_alive():  # none yet, or this process was forked
            _thread = threading.Thread(target=_run, name="bstk watch", daemon=True)
            _thread.start()
        elif watch.due < _wakes:
            _changed.notify()


def end(stop: Stop) -> None:
    """Shut down what is watched in threads that read for ``stop``."""
    with _changed:
        for watch in [watch for watch in _watched if watch.stop is stop]:
            _end(watch)


def _end(watch: Watch) -> None:
    _watched.discard(watch)
    watch.ended = True
    with suppress(OSError):
        # That of the base class: TLS would wait for the other side to say good-bye.
        socket.socket.shutdown(watch.sock, socket.SHUT_RDWR)


def _remove(watch: Watch) -> None:
    # With the lock: once it is out, the thread leaves its socket alone, whose number may be another one's soon.
    with _changed:
        _watched.discard(watch)


def _run() -> None:
    global _thread, _wakes
    with _changed:
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            for watch in [watch for watch in _watched if watch.due <= now]:
                _end(watch)
            if _watched:
                idle_since = now
            elif now - idle_since >= _LINGER:
                _thread = None
                return
            _wakes = min((watch.due for watch in _watched), default=now + _LINGER)
            _changed.wait(_wakes - now)
