"""Counting what is read."""

import threading
from collections.abc import Sequence

from .network import Signals
from .source import Buffer, ByteSource, There, fill, signals_of
from .volume_source import VolumeSource
from .volumes import Extent


class CountedSource:
    """A source that counts its requests and bytes.

    Attributes:
        requests: calls that asked the source for bytes.
        bytes_read: bytes that they returned.
        fills: whether the source itself reads into memory of the caller.
    """

    def __init__(self, source: ByteSource) -> None:
        self.name = source.name
        self.requests = 0
        self.bytes_read = 0
        self.fills = hasattr(source, "get_into")
        self._source = source
        self._lock = threading.Lock()

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        data, size = self._source.start(length)
        self._count(len(data))
        return data, size

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`."""
        data = self._source.get(offset, length)
        self._count(len(data))
        return data

    def get_into(self, offset: int, out: memoryview) -> bool:
        """See `bsformat.source.FillingSource.get_into`."""
        return self._fill(offset, out, None)

    def get_telling(self, offset: int, out: memoryview, there: There) -> bool:
        """See `bsformat.source.TellingSource.get_telling`."""
        return self._fill(offset, out, there)

    def _fill(self, offset: int, out: memoryview, there: There | None) -> bool:
        compared = fill(self._source, offset, out, there)
        self._count(len(out))
        return compared

    def join(self, volumes: Sequence[Extent]) -> None:
        """From now on read the volumes of a file, of which the source is the first."""
        if isinstance(self._source, CountedSource):
            self._source.join(volumes)
        elif not isinstance(self._source, VolumeSource):
            self._source = VolumeSource(self._source, volumes)
        self.fills = True

    @property
    def signals(self) -> Signals:
        """What the source notices of its server."""
        return signals_of(self._source)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _count(self, length: int) -> None:
        with self._lock:
            self.requests += 1
            self.bytes_read += length
