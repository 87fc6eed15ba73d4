"""Counting what is read."""

import threading

from .source import Buffer, ByteSource


class CountedSource:
    """A source that counts its requests and bytes.

    Attributes:
        requests: calls that asked the source for bytes.
        bytes_read: bytes that they returned.
    """

    def __init__(self, source: ByteSource) -> None:
        self.name = source.name
        self.requests = 0
        self.bytes_read = 0
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

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _count(self, length: int) -> None:
        with self._lock:
            self.requests += 1
            self.bytes_read += length
