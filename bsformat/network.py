"""How long to wait for a network, how often to ask again, and what to show of a URL.

Nothing here knows a protocol: `bsformat.http` and `bsformat.s3` share it.
"""

import asyncio
import email.utils
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from .errors import BstkError, BudgetError, SourceError
from .stopping import current_stop
from .units import parse_size

#: Bytes that `Network.deadline` is meant for; a longer read has as much more time.
DEADLINE_BYTES = 16 << 20
#: An attempt that brought so many bytes before it failed does not count as a failed one.
PROGRESS_BYTES = 1 << 20
#: Attempts at most while a host that never answered does not let connect: a wrong name is said soon.
UNREACHABLE_ATTEMPTS = 4
#: What reads over http(s) and s3; the first where nothing is said.
BACKENDS = ("fsspec", "obstore")
#: Host memory for reading many blocks, where nothing is said.
MEMORY_BYTES = 256 << 20
#: Seconds between two looks whether a pause is waited for still.
_LOOK = 0.1
#: HTTP statuses that may pass; from 520 on what a proxy answers for a server that it does not reach.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})


def default_memory() -> int:
    """Bytes of `Network.memory` where nothing is said: ``BSTK_MEMORY``, a size, or 256 MiB.

    Raises:
        BudgetError: the variable is no size above 0.
    """
    text = os.environ.get("BSTK_MEMORY", "")
    if not text:
        return MEMORY_BYTES
    try:
        size = parse_size(text)
    except BstkError:
        size = 0
    if size <= 0:
        raise BudgetError(f"BSTK_MEMORY is {text!r}, and must be a size as 256MiB", reason="budget-invalid")
    return size


def memory_of(memory: int | str | None, network: "Network | None") -> int:
    """Bytes of host memory that reading may take: ``memory``, a number or a size, if it is given, else the network's.

    Raises:
        BudgetError: it is no size above 0.
    """
    if memory is None:
        return default_memory() if network is None else network.memory
    size = parse_size(memory)
    if size <= 0:
        raise BudgetError(f"memory is {memory!r}, and must be a size as 256MiB", reason="budget-invalid")
    return size


def default_backend() -> str:
    """`Network.backend` where nothing is said: ``BSTK_BACKEND``, or fsspec.

    Raises:
        SourceError: the variable names none.
    """
    name = os.environ.get("BSTK_BACKEND", "") or BACKENDS[0]
    if name not in BACKENDS:
        raise SourceError(f"BSTK_BACKEND is {name!r}, and must be one of {', '.join(BACKENDS)}")
    return name


@dataclass(frozen=True, slots=True)
class Network:
    """What reads over http(s) and s3 may take. Times are in seconds.

    Attributes:
        connect_timeout: for one connection, its TLS handshake included.
        stall_timeout: without a single byte, before an answer or within it.
        minimum_rate: bytes per second that an answer must bring over each ``rate_window``; 0 takes any.
        rate_window: see ``minimum_rate``.
        attempts: failed attempts of one read before it is given up, the first one included. An attempt that brought
            1 MiB is not counted; what came is never asked for again.
        pause: the longest pause after the first failed attempt. It doubles with each, up to ``longest_pause``, and a
            random part of it is waited. What a server asks for (Retry-After) is waited in full, within ``deadline``.
        longest_pause: see ``pause``.
        deadline: for one read of up to 16 MiB, all attempts and pauses together; in proportion for a longer one.
        allow_stream: read an object once from its beginning to its end where an HTTP server ignores byte ranges.
        memory: bytes of host memory that reading many blocks may take beside what becomes resident, of local files too:
            ranges in flight, and those that came and were not used yet. A block that alone takes more is read alone.
        backend: what reads http(s) and s3: ``fsspec``, or ``obstore``, which may be faster and needs the extra of that
            name; `bsformat.obstore_source` says what it does not do. ``BSTK_BACKEND`` says which where nothing does.
        renew: called with the URL when access that was granted is denied, as when a signature has expired, or when
            another volume of the file needs a signed URL of its own; gives the URL to go on with. It runs in a thread.
        clock, sleep, random: where time and chance come from; tests put their own.
    """

    connect_timeout: float = 20.0
    stall_timeout: float = 30.0
    minimum_rate: float = 1024.0
    rate_window: float = 30.0
    attempts: int = 8
    pause: float = 0.25
    longest_pause: float = 10.0
    deadline: float = 900.0
    allow_stream: bool = False
    memory: int = field(default_factory=default_memory)
    backend: str = field(default_factory=default_backend)
    renew: Callable[[str], str] | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], Awaitable[object]] = field(default=asyncio.sleep, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "stall_timeout", "rate_window", "attempts", "deadline", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Network.{name} is {getattr(self, name)}, and must be above 0")
        if self.backend not in BACKENDS:
            raise ValueError(f"Network.backend is {self.backend!r}, and must be one of {', '.join(BACKENDS)}")
        for name in ("minimum_rate", "pause", "longest_pause"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Network.{name} is {getattr(self, name)}, and must be at least 0")


class Transient(Exception):
    """A failure that may pass.

    Attributes:
        error: what to raise if it does not.
        wait: seconds that the server asked to wait, or None.
        unreachable: there was no connection at all.
        pressed: it may come from too much being asked for at once.
    """

    def __init__(
        self, error: SourceError, wait: float | None = None, *, unreachable: bool = False, pressed: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error, self.wait, self.unreachable, self.pressed = error, wait, unreachable, pressed


class Signals:
    """What a source notices of its server, for who decides how much to ask of it at once. For several threads.

    Attributes:
        setbacks: failures that may come from too much being asked for at once: 429, 503 and their like, silence,
            bytes that come too slowly, connections that were refused.
        latency: seconds until an answer begins, about the shortest lately: the way there and back, and not the queue
            that this machine or the server has just then; 0 before the first.
        received: bytes of bodies that came, those that could not be used included; 0 always unless ``counts``.
        most: requests at once that make sense.
    """

    def __init__(self, *, counts: bool = False, most: int = 64) -> None:
        self.setbacks, self.latency, self.received = 0, 0.0, 0
        self.counts, self.most = counts, most
        self._lock = threading.Lock()

    def came(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self.received += count

    def set_back(self) -> None:
        """Count a setback."""
        with self._lock:
            self.setbacks += 1

    def answered_in(self, seconds: float) -> None:
        """Note how long an answer took to begin."""
        with self._lock:
            self.latency = seconds if self.latency == 0 else min(seconds, self.latency * 1.02)


class Patience:
    """The attempts of one read of ``length`` bytes: it counts them, waits between them, and ends them."""

    def __init__(self, network: Network, length: int) -> None:
        self._network = network
        self.allowed = network.deadline * max(1.0, length / DEADLINE_BYTES)
        self._began = network.clock()
        self._failed = 0
        self._stop = current_stop()

    @property
    def left(self) -> float:
        """Seconds until the deadline; below 0 after it."""
        return self.allowed - (self._network.clock() - self._began)

    async def wait(self, failure: Transient, brought: int, *, answered: bool) -> None:
        """Wait before the next attempt.

        Args:
            brought: bytes that the failed attempt brought.
            answered: whether the server ever gave an answer that could be used.

        Raises:
            SourceError: that was the last attempt, or the deadline would pass.
        """
        network = self._network
        self._go_on(failure)
        self._failed = 1 if brought >= PROGRESS_BYTES else self._failed + 1
        most = network.attempts
        if failure.unreachable and not answered:
            most = min(most, UNREACHABLE_ATTEMPTS)
        if self._failed >= most:
            raise _ended(failure, f"given up after {most} attempts; try again later, or allow more attempts")
        pause = network.random() * min(network.longest_pause, network.pause * 2.0 ** (self._failed - 1))
        if failure.wait is not None:
            pause += failure.wait
        if pause >= self.left:
            asked = f"the server asks to wait {failure.wait:.0f} s; " if failure.wait is not None else ""
            raise _ended(failure, f"{asked}given up at the deadline of {self.allowed:g} s; allow more time")
        if self._stop is None:
            await network.sleep(pause)
            return
        sleep = asyncio.ensure_future(network.sleep(pause))
        while not sleep.done():
            await asyncio.wait({sleep}, timeout=_LOOK)
            if self._stop.is_set:
                sleep.cancel()
        self._go_on(failure)

    def _go_on(self, failure: Transient) -> None:
        if self._stop is not None and self._stop.is_set:
            raise _ended(failure, "given up: it is not wanted any more")

    def late(self, done: int, length: int) -> SourceError:
        """The error of a read that reached its deadline, with ``done`` of ``length`` bytes."""
        return SourceError(
            f"{done} of {length} bytes came within the deadline of {self.allowed:g} s; "
            "check the connection, or allow more time"
        )


def _ended(failure: Transient, how: str) -> SourceError:
    error = failure.error
    return type(error)(f"{error.message} ({how})", where=error.where, offset=error.offset, reason=error.reason)


class Pace:
    """Watches that an answer brings bytes at `Network.minimum_rate` or faster."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._since, self._bytes = network.clock(), 0

    def came(self, count: int) -> str | None:
        """``count`` bytes came: what is wrong with the rate, or None."""
        now = self._network.clock()
        self._bytes += count
        elapsed = now - self._since
        if elapsed < self._network.rate_window:
            return None
        slow = self._bytes < self._network.minimum_rate * elapsed
        text = f"only {self._bytes} bytes came in {elapsed:.1f} s, slower than {self._network.minimum_rate:g} a second"
        self._since, self._bytes = now, 0
        return text if slow else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or a date, which is taken against the server's own clock."""
    text = headers.get("Retry-After", headers.get("retry-after", "")).strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("Date", headers.get("date", "")))
    return max(0.0, until - (time.time() if now is None else now))


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


# Servers choose these texts too: no character is looked at again for each place at which a match might have begun.
_BEFORE = r"([^\s?'\"<>]++)\?(?=[^\s'\"<>)])"
_QUERY, _FOLLOWING = re.compile(r"(?<![^\s?'\"<>])" + _BEFORE), re.compile(_BEFORE)
_VALUES = re.compile(r"[^\s'\"<>)]++")
_USER = re.compile(r"(?<=[a-z0-9+.-]://)[^/\s?#]*@", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A text with what URLs in it may carry taken out: user and password, and queries, where signatures stand."""
    text, out, at = _USER.sub("", text), [], 0
    found = _QUERY.search(text)
    while found:
        out.append(text[at : found.end()])
        at = found.end()
        if "/" in found[1] and (values := _VALUES.match(text, at)):
            out.append("…")
            at = values.end()
        found = _FOLLOWING.match(text, at) or _QUERY.search(text, at)
    return "".join([*out, text[at:]])
