"""Reading runs of blocks: ranges in flight at once, bounded in bytes, as many as the link likes; every block checked.

Threads read ranges, and compare and decode their blocks, while others wait for the network; the caller gets them in the
order of the file, or as they come.
"""

import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from .adapt import LEAST_BYTES, Adaptive
from .block import Block, Span
from .buffers import Buffers, Lease, too_large
from .container import Container
from .errors import FormatError
from .source import Buffer
from .stopping import Stop, reading_for

Payload = bytes | memoryview
#: Bytes that may wait for the caller in any case.
_AHEAD: Final = 8 << 20
#: Seconds between two looks at what came, at most.
_LOOK: Final = 0.1


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a `Flow` is, for who watches it.

    Attributes:
        done, total: bytes of the file that came and were checked, and that are wanted.
        running, requests: requests that run, and that may. request_bytes: of the next one.
        held: bytes of host memory in use.
        rate: bytes per second, lately; 0 before that can be told.
        setbacks: failures so far for which less is asked at once.
    """

    done: int
    total: int
    running: int
    requests: int
    request_bytes: int
    held: int
    rate: float
    setbacks: int


@dataclass(slots=True)
class Part:
    """A range that was read.

    Attributes:
        span: which blocks it has. data: its bytes.
        blocks: with their checked payloads, in the order of the file; none where they were examined instead.
        problems: what that found.
    """

    span: Span
    data: Buffer
    blocks: list[tuple[Block, Payload]]
    problems: list[FormatError] = field(default_factory=list)


@dataclass(slots=True)
class _Job:
    span: Span
    lease: Lease
    part: Part | None = None
    error: BaseException | None = None


class Flow:
    """One pass over runs of blocks; iterate over it once, in one thread.

    A part is valid until the next one is taken: its memory is used again.

    Args:
        runs: ranges [first, stop) of blocks, in the order of the file.
        memory: bytes of host memory at most for all that is asked for, waits, or was decoded. A block that alone takes
            more is read on its own.
        request_bytes: of one request, unless a single block is larger; None: adapted to the link.
        requests: in flight at once, or come and not yet let go; None: adapted to the link, within the memory.
        ordered: give the parts in the order of the file; else as they come.
        watch: called in the caller's thread, after each part that came and ten times a second while none comes.
        examine: called in the threads that read, with a span, its bytes, and whether its blocks were compared with
            their digests; gives what is wrong. None: blocks are decoded, and the first that is damaged ends it all.
    """

    def __init__(
        self,
        container: Container,
        runs: Sequence[tuple[int, int]],
        *,
        memory: int,
        request_bytes: int | None = None,
        requests: int | None = None,
        ordered: bool = True,
        watch: Callable[[Reading], object] | None = None,
        examine: Callable[[Span, Buffer, bool], list[FormatError]] | None = None,
    ) -> None:
        self._examine = examine
        self._container, self._runs, self._ordered = container, list(runs), ordered
        self._request_bytes, self._requests, self._watch = request_bytes, requests, watch
        self._total = sum(container.layout.extent(first, stop) for first, stop in self._runs)
        self._left, self._done = self._total, 0
        self._buffers, self._mapped = Buffers(memory), container.fills
        self._signals = container.signals
        self._setbacks = self._signals.setbacks
        # Two conditions, so that a part that came wakes who waits for it, and not all who wait for room.
        self._lock = threading.RLock()
        self._came, self._freed = threading.Condition(self._lock), threading.Condition(self._lock)
        self._pace = Adaptive(
            memory,
            time.monotonic(),
            self._signals.received,
            self._signals.setbacks,
            self._signals.latency,
            self._signals.most if requests is None else requests,
            os.cpu_count() or 0,
        )
        self._jobs: list[_Job] = []  # taken up and not yet given out, in the order of the file
        self._lent = 0  # given out and not yet let go
        self._running = self._waiting = 0
        self._stopped, self._stop = False, Stop()
        self._threads: list[threading.Thread] = []
        self._broken: BaseException | None = None

    def __iter__(self) -> Generator[Part, None, None]:
        try:
            with self._lock:
                self._hire()
            while self._jobs or self._runs:
                job = self._await()
                if self._watch is not None:
                    self._watch(self.reading())
                if job is None:
                    continue
                if job.error is not None:
                    raise job.error
                if job.part is not None:
                    yield job.part
                self._let_go(job)
        finally:
            with self._lock:
                self._stopped = True
                self._freed.notify_all()
            self._stop.set()
            for thread in self._threads:
                thread.join()

    # The caller's thread

    def _await(self) -> _Job | None:
        """The next part when it is there, or None after a while."""
        until = time.monotonic() + _LOOK
        with self._lock:
            while True:
                if self._broken is not None:
                    raise self._broken
                for i, job in enumerate(self._jobs):
                    if job.part is not None or job.error is not None:
                        self._lent += 1
                        return self._jobs.pop(i)
                    if self._ordered:
                        break
                if (seconds := until - time.monotonic()) <= 0:
                    self._look()
                    return None
                self._came.wait(seconds)

    def reading(self) -> Reading:
        """How far it is."""
        with self._lock:
            usual = self._request_bytes or self._pace.request_bytes
            used, setbacks = self._buffers.used, self._signals.setbacks - self._setbacks
            return Reading(
                self._done, self._total, self._running, self._allowed, usual, used, self._pace.rate, setbacks
            )

    def _let_go(self, job: _Job) -> None:
        part, job.part = job.part, None
        for _, payload in part.blocks if part is not None else ():
            # What somebody made of it stays: the buffer is theirs then. The payload itself says that its time is over.
            with suppress(BufferError):
                if isinstance(payload, memoryview):
                    payload.release()
        if part is not None:
            part.blocks, part.data = [], b""
        with self._lock:
            self._lent -= 1
            self._waiting -= job.span.length
            self._buffers.give(job.lease)
            self._freed.notify()

    # The threads that read

    def _hire(self) -> None:
        """One more thread, if there is room for another request."""
        if self._runs and not self._stopped and len(self._threads) < self._allowed:
            thread = threading.Thread(target=self._work, name=f"bstk-read-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    @property
    def _allowed(self) -> int:
        return self._pace.requests if self._requests is None else self._requests

    def _work(self) -> None:
        try:
            with reading_for(self._stop):
                while (job := self._take()) is not None:
                    self._do(job)
                    del job
        except BaseException as error:  # a mistake in here must not leave the caller waiting
            with self._lock:
                self._broken, self._stopped = error, True
                self._freed.notify_all()
                self._came.notify()

    def _do(self, job: _Job) -> None:
        began, busy, part, failure = time.monotonic(), time.thread_time(), None, None
        try:
            data, compared = self._container.read_span(job.span, job.lease.view)
            if self._examine is None:
                part = Part(job.span, data, list(self._container.decode_span(job.span, data, compared=compared)))
            else:
                part = Part(job.span, data, [], self._examine(job.span, data, compared))
            del data
        except BaseException as error:
            failure = error
        with self._lock:
            job.part, job.error = part, failure
            self._running -= 1
            if job.error is not None:
                self._stopped = True
                self._freed.notify_all()
            self._done += job.span.length
            self._waiting += job.span.length
            self._pace.ended(job.span.length, time.monotonic() - began, time.thread_time() - busy)
            self._look()
            if job.error is not None or not self._ordered or self._jobs[0] is job:
                self._came.notify()

    def _take(self) -> _Job | None:
        """The next range to read, when there is room for it."""
        with self._lock:
            while True:
                if self._stopped or not self._runs:
                    self._freed.notify()  # the others may go too
                    return None
                if (job := self._room()) is not None:
                    self._hire()
                    if self._running < self._allowed:
                        self._freed.notify()  # there may be room for another one
                    return job
                self._freed.wait()

    def _room(self) -> _Job | None:
        if self._requests is not None and len(self._jobs) + self._lent >= self._requests:
            return None
        if self._running >= self._allowed:
            return None
        usual = self._request_bytes or self._pace.request_bytes
        size = usual
        if self._request_bytes is None:
            # Smaller ones at the end, so that not one connection has much to do when all others have nothing.
            size = min(size, max(LEAST_BYTES, self._left // (2 * self._allowed)))
        first, stop = self._runs[0]
        span, extra = self._container.layout.span(first, stop, size, self._buffers.bound)
        if self._requests is None and self._waiting > max(_AHEAD, self._allowed * size):
            return None  # the caller is slower than the link: more would only take memory, and the processor's caches
        later = 0 if self._request_bytes else self._pace.largest
        try:
            lease = self._buffers.take(span.length, extra, usual, mapped=self._mapped, later=later)
        except MemoryError:
            raise too_large(span.length, self._container.uri, span.offset) from None
        if lease is None:
            return None
        self._runs[0] = (span.stop, stop)
        if span.stop == stop:
            self._runs.pop(0)
        self._left -= span.length
        self._running += 1
        job = _Job(span, lease)
        self._jobs.append(job)
        return job

    def _look(self) -> None:
        """Tell what happened to who decides how much is asked for."""
        if self._requests is None:
            signals, full = self._signals, self._running >= self._allowed - 1
            received = signals.received if signals.counts else self._done
            self._pace.tick(time.monotonic(), received, signals.setbacks, signals.latency, full=full)
            self._hire()
            if self._running + 1 < self._allowed:  # who looks goes on itself
                self._freed.notify()
