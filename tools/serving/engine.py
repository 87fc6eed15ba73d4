"""The thread that makes tokens: every request in its turn, one pass at a time."""

import logging
import threading
import time
from collections import deque
from typing import Final, Protocol

from .job import Ended, Job
from .passes import Passes

_LOG: Final = logging.getLogger(__name__)


class StoppedError(Exception):
    """The server stops, and the grace time of what it was answering is over."""


class Watcher(Protocol):
    """Who is told what the engine has done."""

    def advanced(self, seconds: float, job: Job) -> object:
        """A pass for a job took so long."""
        ...

    def ended(self, job: Job, error: BaseException | None) -> object:
        """Nothing more comes of a job."""
        ...


class Engine:
    """Answers jobs: as many at once as have up to ``parallel`` answers, the others in the order in which they came.

    Those that are being answered take turns, and a turn is one pass: a piece of a prompt, or one token. So a short
    request does not wait for the end of a long one, and each goes through the model alone, whose results then do not
    depend on what else there is to do. Between two passes the model may be resized.

    Args:
        passes: the model. No other thread runs passes of it through this object.
        parallel: answers that are written at once; no job may ask for more.
    """

    def __init__(self, passes: Passes, parallel: int, watcher: Watcher) -> None:
        self.passes = passes
        self._parallel, self._watcher = parallel, watcher
        self._moved = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: deque[Job] = deque()
        self._stopping = False
        # No daemon: those are stopped in the middle of what they do, which torch does not survive.
        self._thread = threading.Thread(target=self._run, name="bstk-engine")

    def start(self) -> "Engine":
        """Begin to answer."""
        self._thread.start()
        return self

    def submit(self, job: Job) -> None:
        """Answer a job when its turn comes; it is told what becomes of it."""
        with self._moved:
            if not self._stopping:
                self._waiting.append(job)
                self._moved.notify_all()
                return
        self._end(job, StoppedError())

    def cancel(self, job: Job) -> None:
        """Answer a job no further: nobody waits for it. One that still waits for its turn ends now."""
        with self._moved:
            job.cancelled = True
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        self._end(job, None)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their first turn."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that take turns."""
        return len(self._active)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the caches of all jobs."""
        with self._moved:
            return sum(job.cached_tokens for job in self._active)

    def stop(self) -> None:
        """End everything after the pass that runs: jobs are told, with `StoppedError`."""
        with self._moved:
            self._stopping = True
            self._moved.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            error: BaseException | None = None
            goes_on = False
            try:
                if not job.cancelled:
                    goes_on = self._advance(job)
            except Exception as raised:  # memory, a device: the next job may fare better
                error = raised
            if not goes_on:
                with self._moved:
                    self._active.remove(job)
                self._end(job, error)

    def _next(self) -> Job | None:
        """The job whose turn it is, moved to the end of those that take turns; None: stop."""
        with self._moved:
            while not (self._stopping or self._active or self._waiting):
                self._moved.wait()
            if not self._stopping:
                while self._waiting and self._fits(self._waiting[0]):
                    self._active.append(self._waiting.popleft())
                self._active.rotate(-1)
                return self._active[-1]
            left = [*self._active, *self._waiting]
            self._active.clear()
            self._waiting.clear()
        for job in left:
            self._end(job, StoppedError())
        return None

    def _fits(self, job: Job) -> bool:
        return job.answers + sum(active.answers for active in self._active) <= self._parallel

    def _advance(self, job: Job) -> bool:
        begun = time.monotonic()
        if job.started is None:
            job.started = begun
        goes_on = job.advance(self.passes)
        self._watcher.advanced(time.monotonic() - begun, job)
        return goes_on

    def _end(self, job: Job, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, StoppedError):
            _LOG.error("a request failed", exc_info=error)
        job.forget()
        self._watcher.ended(job, error)
        # The frames behind it hold caches.
        job.tell(Ended(error.with_traceback(None) if error is not None else None))
