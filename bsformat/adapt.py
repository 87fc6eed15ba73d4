"""How many requests at once, and how large: found out from what the link gives.

One rule for loopback, a store of objects and a phone: ask for more as long as more comes. Nothing here reads a clock or
a network; `bsformat.flow` tells what happened, and tests tell what they like.
"""

from typing import Final

#: Requests at once, at first (fewer where there are fewer processors to compare what they bring), at first where
#: answers take long to begin, and at most.
FIRST: Final = 4
FIRST_AFAR: Final = 16
MOST: Final = 64
#: Seconds until an answer begins, from which on a server is far away: one connection alone seldom fills such a link.
_AFAR: Final = 0.02
#: Bytes of a request: at first and at least, the least where memory is short, and at most. Larger ones spend less of
#: their time waiting for an answer, and take longer until any of it can be used.
FIRST_BYTES: Final = 4 << 20
LEAST_BYTES: Final = 1 << 18
MOST_BYTES: Final = 16 << 20
#: A request should take this many times as long as its answer takes to begin.
_WORTHWHILE: Final = 8
#: And so many seconds, in which this process asks and answers for it a hundred times over: one that took less is
#: followed by one of twice its bytes at once.
_BRISK_SECONDS: Final = 0.015
#: Of what more requests would bring if the link had room for all of them, the part that must come for them to stay.
_GAIN: Final = 0.3
#: Fewer requests stay if they bring this part of what more of them brought. Three are the fewest that are tried: while
#: one waits for its answer, and what another one brought is compared, there is one that brings some.
_SAME: Final = 0.98
_FEWEST: Final = 3
#: Share of the processors that reading takes from which on more requests are not tried: they would only wait for them,
#: and take the room in their caches from each other.
_CROWDED: Final = 0.4
#: Windows that pass after a step that brought nothing, and after a setback, before another one is tried; after steps
#: that brought nothing again and again it doubles.
_REST: Final = 4
_LONGEST_REST: Final = 64
#: Seconds of a window at least, and how many times as long as an answer takes to begin: new connections start slowly.
_WINDOW: Final = 0.1
_ROUND_TRIPS: Final = 10


class Adaptive:
    """Additive increase while throughput rises, doubling at first; fewer where that loses nothing; half on a setback.

    Args:
        memory: bytes that may be held: what is asked for at once stays within half of it, as what came may have to
            wait for what should come before it.
        now: seconds on any clock. received, setbacks: counted so far. latency: known so far, or 0; see `tick`.
        most: requests at once that make sense for the source. processors: of this machine; 0 for any number.

    Attributes:
        requests: at once, now. request_bytes: of each, now. largest: that these will soon be; 0 if that is not clear.
        rate: bytes per second in the last window; 0 before its end.
    """

    def __init__(
        self,
        memory: int,
        now: float,
        received: int = 0,
        setbacks: int = 0,
        latency: float = 0.0,
        most: int = MOST,
        processors: int = 0,
    ) -> None:
        self._room = max(1, memory // 2)
        self._most = max(1, min(most, MOST, self._room // LEAST_BYTES))
        near = min(FIRST, processors + 1) if processors else FIRST
        self.requests = min(FIRST_AFAR if latency >= _AFAR else near, self._most)
        self._fewest = min(_FEWEST, near)
        self.request_bytes = self._bounded(FIRST_BYTES)
        # Near servers soon get the largest requests, and few of them at once.
        self.largest = self._bounded(MOST_BYTES) if latency < _AFAR else 0
        self.rate = 0.0
        self._began, self._received, self._setbacks = now, received, setbacks
        self._size, self._busy, self._ended = 0, 0.0, 0
        self._processors, self._worked = processors, 0.0
        self._doubling, self._upwards = True, True
        self._before: tuple[int, float] | None = None  # requests and rate before the last step
        self._resting, self._rest = 0, _REST

    def ended(self, size: int, seconds: float, worked: float = 0.0) -> None:
        """A request ended that brought ``size`` bytes within ``seconds``, of which a processor ``worked`` so many."""
        self._ended += 1
        self._worked += worked
        self._size += size
        self._busy += seconds
        if seconds < _BRISK_SECONDS and size > self.request_bytes // 2:
            self.request_bytes = self._bounded(2 * self.request_bytes)

    def tick(self, now: float, received: int, setbacks: int, latency: float, *, full: bool = True) -> None:
        """Look at what happened; to be called often.

        Args:
            received: bytes that came so far, those of requests that have not ended included.
            setbacks: failures so far that may come from too much being asked for at once.
            latency: seconds that answers take to begin, lately.
            full: whether as many requests run as may; else more of them would change nothing.
        """
        if setbacks > self._setbacks:
            self.requests = max(1, self.requests // 2)
            self._doubling, self._before, self._resting = False, None, _REST
            self._next(now, received, setbacks)
        elif now - self._began >= max(_WINDOW, _ROUND_TRIPS * latency):
            elapsed = now - self._began
            self.rate = (received - self._received) / elapsed
            crowded = 0 < _CROWDED * self._processors * elapsed <= self._worked
            self._next(now, received, setbacks)
            self._resize(latency)
            if full:
                self._judge(crowded)

    def _next(self, now: float, received: int, setbacks: int) -> None:
        self._began, self._received, self._setbacks, self._worked = now, received, setbacks, 0.0

    def _judge(self, crowded: bool) -> None:
        if self._before is not None:
            requests, rate = self._before
            self._before = None
            gain = _GAIN * (self.requests - requests) / requests
            if self.rate < rate * (1 + gain if gain > 0 else _SAME):
                # It brought nothing, or lost something: back, longer until the next try, and that the other way.
                self.requests, self._doubling, self._upwards = requests, False, not self._upwards
                self._resting, self._rest = self._rest, min(2 * self._rest, _LONGEST_REST)
                return
            self._rest = _REST
        elif self._resting:
            self._resting -= 1
            return
        if crowded:
            self._doubling = self._upwards = False
        if not self._upwards:
            other = max(self._fewest, self.requests - max(1, self.requests // 4))
        else:
            other = 2 * self.requests if self._doubling else self.requests + max(1, self.requests // 8)
        if (other := min(other, self._most)) != self.requests:
            self._before = self.requests, self.rate
            self.requests = other
            self.request_bytes = self._bounded(self.request_bytes)
        else:
            self._upwards = not self._upwards

    def _resize(self, latency: float) -> None:
        """Bytes that one connection brings while a request is worth its wait; by a factor of two at a time."""
        if not self._ended:
            return
        streaming = max(self._busy - self._ended * latency, 0.01 * self._busy)
        rate = self._size / streaming if streaming > 0 else 0.0
        wanted = int(rate * max(latency * _WORTHWHILE, _BRISK_SECONDS))
        wanted = 1 << max(wanted - 1, 0).bit_length()
        self.request_bytes = self._bounded(min(max(wanted, self.request_bytes // 2), self.request_bytes * 2))
        self._size, self._busy, self._ended = 0, 0.0, 0

    def _bounded(self, size: int) -> int:
        size = min(max(size, FIRST_BYTES), MOST_BYTES, max(1, self._room // self.requests))
        return 1 << (size.bit_length() - 1)  # so that buffers fit again
