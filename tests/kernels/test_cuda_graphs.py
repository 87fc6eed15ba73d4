"""What is done when a graph ends, where the driver is a stand-in."""

import ctypes
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from bitstack.kernels import cuda_graphs


class Library:
    """Semaphores of which all are raised; two threads that look at them at once do so together."""

    sem_post = ctypes.CFUNCTYPE(None)(lambda: None)

    def __init__(self):
        self.made, self.freed, self.wrong = 0, set(), []
        self.together = threading.Barrier(2)

    def malloc(self, _):
        self.made += 1
        return self.made

    def sem_init(self, *_):
        return 0

    def sem_trywait(self, semaphore):
        with suppress(threading.BrokenBarrierError):
            self.together.wait(0.5)
        if semaphore.value in self.freed:
            self.wrong.append(semaphore.value)
        return 0

    def free(self, semaphore):
        if semaphore.value in self.freed:
            self.wrong.append(semaphore.value)
        self.freed.add(semaphore.value)


@pytest.fixture
def library(monkeypatch):
    made = Library()
    names = ("cuStreamGetCaptureInfo_v2", "cuUserObjectCreate", "cuGraphRetainUserObject")
    monkeypatch.setattr(cuda_graphs, "driver", lambda: SimpleNamespace(**dict.fromkeys(names, lambda *_: 0)))
    monkeypatch.setattr(cuda_graphs, "_libc", lambda: made)
    monkeypatch.setattr(cuda_graphs, "_waiting", [])
    return made


def test_two_threads_that_capture_end_a_graph_once(library):
    done, failed = [], []
    cuda_graphs.when_graph_ends(0, lambda: done.append("first"))

    def capture():
        try:
            cuda_graphs.when_graph_ends(0, lambda: None)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=capture) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not library.wrong
    assert done == ["first"]
