"""Reading the head of a remote file, as far as it is not in the cache."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import blake3

from . import superblock
from .cache import BlockCache
from .head import FIRST_READ, Head, read_head
from .source import Buffer, ByteSource
from .superblock import SIZE

_LOG: Final = logging.getLogger(__name__)
#: Seconds that another process that reads the same head is waited for, and between looks.
PATIENCE: Final = 60.0
_PAUSE: Final = 0.01


def read_cached_head(source: ByteSource, root: str | None, cache: BlockCache) -> Head:
    """`bsformat.head.read_head` through a cache.

    The superblock is always read from the object: it says which file that is now. What follows it comes from the cache
    where the cache has the head of that root. Processes that open one URI at the same time read its head one after
    the other, so that all but the first find it.

    Args:
        root: the root digest that the caller demands, 64 hexadecimal digits, or None.

    Raises:
        SourceError, FormatError: as `read_head` does. What the cache's folder refuses is logged, not raised.
    """
    cached = _HeadSource(source, cache)
    with cached.opening() as first_read:
        head = read_head(cached, root, first_read)
        if not cache.read_only:
            try:
                cache.heads.put(head.superblock.root, head.stored[SIZE:], cached.uri)
            except OSError as error:
                _LOG.warning("%s: its head is not kept in %s: %s", source.name, cache.folder, error)
        return head


class _HeadSource:
    """What `read_head` reads from. Not for several threads."""

    def __init__(self, source: ByteSource, cache: BlockCache) -> None:
        self.name = source.name
        #: The URI may hold credentials: its digest stands for it.
        self.uri = blake3.blake3(source.name.encode()).digest()
        self._source, self._cache = source, cache
        self._start = b""

    @contextmanager
    def opening(self) -> Iterator[int]:
        """Within it the head is read; gives how many bytes to begin with: those of the superblock if that may do."""
        if self._expected() or self._cache.read_only:
            yield SIZE if self._expected() else FIRST_READ
            return
        try:
            self._cache.prepare()
            lease = self._cache.leases(self.uri)
        except OSError as error:
            _LOG.warning("%s: the cache in %s cannot be used: %s", self.name, self._cache.folder, error)
            yield FIRST_READ
            return
        with lease:
            deadline = time.monotonic() + PATIENCE
            while not lease.take(0, SIZE) and not self._expected() and time.monotonic() < deadline:
                time.sleep(_PAUSE)
            yield SIZE if self._expected() else FIRST_READ

    def _expected(self) -> bool:
        """Whether the head that this URI had the last time is there."""
        root = self._cache.heads.root_of(self.uri)
        return root is not None and self._cache.heads.has(root)

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        data, size = self._source.start(length)
        self._start = bytes(data[:SIZE])
        return data, size

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`: the end of the head."""
        block = superblock.decode(self._start, self.name)
        head = self._cache.heads.get(block.root)
        if head is not None and offset + length == block.head_length == SIZE + len(head):
            middle = block.metadata_stored
            if superblock.compute_root(block.identity(), head[:middle], head[middle:]) == block.root:
                return head[offset - SIZE :]
        if head is not None:
            self._cache.heads.drop(block.root)
        return self._source.get(offset, length)

    def close(self) -> None:
        """Nothing to release: the source is the caller's."""
