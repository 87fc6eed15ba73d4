"""Which CUDA graph is being captured, and when it has come to its end."""

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from .cuda_driver import check, driver

_SEMAPHORE_BYTES: Final = 64
_UNSYNCHRONIZED: Final = 1
"""CU_USER_OBJECT_NO_DESTRUCTOR_SYNC: nothing of CUDA waits for the call that tells of an end."""
_MOVE: Final = 1
"""CU_GRAPH_USER_OBJECT_MOVE: the graph takes the reference over."""

_waiting: list[tuple[int, Callable[[], object]]] = []
_lock = threading.Lock()
"""Of what waits, and of its semaphores: several threads may capture at once."""


@cache
def _libc() -> Any:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    return library


def capture_number(stream: int) -> int:
    """The number of the capture that a stream, which captures, belongs to: no other one of the process has it."""
    status, number = ctypes.c_int(), ctypes.c_ulonglong()
    out = (ctypes.byref(status), ctypes.byref(number), None, None, None)
    check(driver().cuStreamGetCaptureInfo_v2(ctypes.c_void_p(stream), *out), "asking for a capture")
    return number.value


def when_graph_ends(stream: int, action: Callable[[], object]) -> None:
    """Do something once the graph that a stream captures, and all that was made of it, is no more.

    The driver tells of that in a thread of its own, at any time, until the process has ended: so what it calls is a
    function of the C library, which raises a semaphore, and what is to be done is done by a later call of this.

    Raises:
        DriverError: the driver refuses.
    """
    with _lock:
        ended = [entry for entry in _waiting if _libc().sem_trywait(ctypes.c_void_p(entry[0])) == 0]
        for entry in ended:
            _waiting.remove(entry)
            _libc().free(ctypes.c_void_p(entry[0]))
    for _, end in ended:
        end()
    status, graph, watched = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    out = (ctypes.byref(status), None, ctypes.byref(graph), None, None)
    check(driver().cuStreamGetCaptureInfo_v2(ctypes.c_void_p(stream), *out), "asking for a capture")
    semaphore = _libc().malloc(_SEMAPHORE_BYTES)
    _libc().sem_init(ctypes.c_void_p(semaphore), 0, 0)
    tell = ctypes.cast(_libc().sem_post, ctypes.c_void_p)
    made = driver().cuUserObjectCreate(ctypes.byref(watched), ctypes.c_void_p(semaphore), tell, 1, _UNSYNCHRONIZED)
    check(made, "watching a graph")
    check(driver().cuGraphRetainUserObject(graph, watched, 1, _MOVE), "watching a graph")
    with _lock:
        _waiting.append((semaphore, action))
