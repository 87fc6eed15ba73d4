"""The bytes of a file that lies in several objects, as if they were joined (spec §4.8).

An object is opened when bytes of it are wanted for the first time, with the request that brings them: it is pinned by
that answer (its ETag, say), and has to have exactly the length that the index says.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from .buffers import new_bytes
from .errors import FormatError, NotFoundError, TruncatedError
from .network import Signals
from .source import Buffer, ByteSource, fill, signals_of
from .volumes import Extent


class VolumeSource:
    """A `bsformat.source.FillingSource` over the volumes of a file. Safe to call from several threads.

    Args:
        first: the first volume, which was opened. Where the others are is its own to know (`SiblingSource`); a source
            that does not know it has none.
        volumes: all of them.
    """

    def __init__(self, first: ByteSource, volumes: Sequence[Extent]) -> None:
        self.name = first.name
        self._first, self._volumes = first, volumes
        self._starts = [volume.offset for volume in volumes]
        self._others: dict[int, _Other] = {}
        self._lock = threading.Lock()

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`: of the first volume."""
        return self._first.start(length)

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`.

        Raises:
            NotFoundError: reason ``volume-missing``. FormatError: ``volume-truncated``, ``volume-trailing-bytes``.
        """
        out = new_bytes(length, self.name, offset)
        self.get_into(offset, memoryview(out))
        return out

    def get_into(self, offset: int, out: memoryview) -> None:
        """See `bsformat.source.FillingSource.get_into`."""
        for number, at, part in self._parts(offset, out):
            if number == 0:
                fill(self._first, at, part)
            else:
                self._other(number).fill(at, part)

    def close(self) -> None:
        """Close all that are open."""
        with self._lock:
            others, self._others = list(self._others.values()), {}
        for other in others:
            other.close()
        self._first.close()

    @property
    def signals(self) -> Signals:
        """What the sources notice of their server."""
        return signals_of(self._first)

    def _parts(self, offset: int, out: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """A range as ranges of volumes: number, offset in it, where the bytes go. What lies beyond is of the last."""
        number = bisect_right(self._starts, offset) - 1
        while out:
            volume, at = self._volumes[number], offset - self._starts[number]
            last = number + 1 == len(self._volumes)
            count = len(out) if last else min(len(out), volume.length - at)
            yield number, at, out[:count]
            out, offset, number = out[count:], offset + count, number + 1

    def _other(self, number: int) -> "_Other":
        with self._lock:
            if number not in self._others:
                self._others[number] = _Other(self._first, self._volumes[number], number, len(self._volumes))
            return self._others[number]


class _Other:
    """A volume after the first."""

    def __init__(self, first: ByteSource, volume: Extent, number: int, count: int) -> None:
        self._first, self._volume = first, volume
        self._what = f"volume {number + 1} of {count}"
        self._source: ByteSource | None = None
        self._sound = False
        self._lock = threading.Lock()

    def fill(self, offset: int, out: memoryview) -> None:
        """Put its bytes from ``offset`` on into ``out``."""
        try:
            source = self._open()
            if self._sound:
                fill(source, offset, out)
                return
            self._begin(source, offset, out)
            self._sound = True
        except NotFoundError as error:
            raise NotFoundError(
                f"{self._what} of {self._first.name} is not there ({error.message}): all volumes belong into one "
                "folder, under the names that bstk inspect shows",
                where=error.where,
                reason="volume-missing",
            ) from None

    def _begin(self, source: ByteSource, offset: int, out: memoryview) -> None:
        begin = getattr(source, "begin", None)
        try:
            if begin is not None:
                self._check(begin(offset, out), source.name)
            else:
                self._check(source.start(0)[1], source.name)
                fill(source, offset, out)
        except FormatError:
            # It is pinned as what it is not to be: who asks again asks for what lies there then.
            with self._lock:
                if self._source is source:
                    self._source = None
            source.close()
            raise

    def _open(self) -> ByteSource:
        with self._lock:
            if self._source is None:
                sibling = getattr(self._first, "sibling", None)
                if sibling is None:
                    raise NotFoundError("where it was opened from is no place that has others", where=self._volume.name)
                self._source = sibling(self._volume.name)
            return self._source

    def _check(self, size: int, where: str) -> None:
        expected = self._volume.length
        if size < expected:
            raise TruncatedError(
                f"{self._what} of {self._first.name} has {size} of {expected} bytes: fetch it again, and see that "
                "it is that volume and not another",
                where=where,
                offset=size,
                reason="volume-truncated",
            )
        if size > expected:
            raise FormatError(
                f"{self._what} of {self._first.name} has {size} bytes, expected {expected}: see that it is that volume "
                "and not another",
                where=where,
                offset=expected,
                reason="volume-trailing-bytes",
            )

    def close(self) -> None:
        with self._lock:
            source, self._source, self._sound = self._source, None, False
        if source is not None:
            source.close()
