"""The layer between a container and its source that answers from the cache, and reads what is missing."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final, TypeVar

import blake3
import numpy as np

from .buffers import new_bytes
from .cache import BlockCache, segment_name
from .head import Head
from .leases import Leases
from .network import Signals
from .source import Buffer, ByteSource, fill, signals_of
from .stopping import check_wanted

_LOG: Final = logging.getLogger(__name__)
#: Seconds that a range is waited for while another process holds its lease and nothing of it comes, and between looks.
PATIENCE: Final = 60.0
_PAUSE: Final = 0.01

_Result = TypeVar("_Result")
#: Numbers of blocks and attachments, in the order of the file.
_Items = list[int]


class CheckedBytes(bytearray):
    """A range of a file whose blocks were all compared with their digests already."""


class CachedSource:
    """A `bsformat.ByteSource` over another one. Safe to call from several threads.

    The cache can only save work: where it cannot be read or written, the source answers, and one warning is logged.

    Args:
        cache: where blocks are looked for and kept.
        head: of the file. What the first read brought beyond it is used when it is asked for.
        n_blocks: how many leading blocks the object holds.

    Attributes:
        bytes_cached: bytes of blocks that came from the cache.
    """

    def __init__(self, source: ByteSource, cache: BlockCache, head: Head, n_blocks: int) -> None:
        self.name = source.name
        self.bytes_cached = 0
        self._source = source
        self._cache: BlockCache | None = cache
        s, index = head.superblock, head.index
        self._root, self._lead, self._head_length = s.root, head.lead, s.head_length
        files = [a for a in head.metadata.attachments if a.data is None and a.stored]
        starts = np.array([s.head_length + a.offset for a in files], np.int64)
        stored = np.array([a.stored for a in files], np.int64)
        #: Of each item, attachments before blocks as in the file: where it begins and ends.
        self._offset = np.concatenate([starts, index.offset[:n_blocks].astype(np.int64)])
        self._end = self._offset + np.concatenate([stored, index.stored[:n_blocks].astype(np.int64)])
        self._digests = [a.digest for a in files] + [d.tobytes() for d in index.digest[:n_blocks]]
        self._known = cache.catalogue(self._digests)
        self._used: set[str] = set()
        self._full = self._damaged = False
        self._lock = threading.Lock()
        if not cache.read_only:
            self._attempt(cache.prepare)

    def _attempt(self, call: Callable[[], _Result]) -> _Result | None:
        """What a use of the cache gives; None, and no cache from then on, if the system refuses it."""
        if self._cache is None:
            return None
        try:
            return call()
        except OSError as error:
            _LOG.warning("%s: going on without the cache in %s: %s", self.name, self._cache.folder, error)
            self._cache = None
            return None

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        return self._source.start(length)

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`. Ranges of whole blocks go through the cache, others do not."""
        out = new_bytes(length, self.name, offset, CheckedBytes)
        return out if self.get_into(offset, memoryview(out)) else bytearray(out)

    def get_into(self, offset: int, out: memoryview) -> bool:
        """See `bsformat.source.FillingSource.get_into`."""
        first, stop = self._inside(offset, offset + len(out))
        if first == stop or self._cache is None:
            self._direct(offset, out)
            return False
        wanted = list(range(first, stop))
        sound = True
        missing = self._fill_or_none(wanted, out, offset)
        while missing:
            missing, good = self._share(missing, out, offset)
            sound = sound and good
        if missing is None:
            self._direct(offset, out)
        return sound and missing is not None

    @property
    def signals(self) -> Signals:
        """What the source notices of its server."""
        return signals_of(self._source)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _inside(self, start: int, stop: int) -> tuple[int, int]:
        """The items that lie in a range; none if it cuts one in two, or has a part of the head in it."""
        if start < self._head_length:
            return 0, 0
        first = int(np.searchsorted(self._offset, start, side="left"))
        last = int(np.searchsorted(self._end, stop, side="right"))
        if (first and self._end[first - 1] > start) or (last < len(self._offset) and self._offset[last] < stop):
            return 0, 0
        return (first, last) if first < last else (0, 0)

    def _direct(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from the source, but for what the first read brought along."""
        have = max(0, min(len(self._lead) - offset, len(out)))
        if have:
            out[:have] = self._lead[offset : offset + have]
        if have < len(out):
            fill(self._source, offset + have, out[have:])

    def _lease(self) -> Leases | None:
        cache = self._cache
        return self._attempt(lambda: cache.leases(self._root)) if cache and not cache.read_only else None

    def _taken(self, lease: Leases, items: _Items) -> bool:
        return lease.take(int(self._offset[items[0]]), int(self._end[items[-1]]))

    def _take(self, lease: Leases, items: _Items) -> _Items:
        """Of some items those whose leases can be had now."""
        mine: _Items = []
        for run in _runs(items):
            mine += run if self._taken(lease, run) else [i for i in run if self._taken(lease, [i])]
        return mine

    def _missing(self, items: _Items) -> _Items:
        """Which of some items the catalogue does not have, after a look at what others added."""
        self._attempt(self._known.refresh)
        return [i for i in items if self._known.find(self._digests[i]) is None]

    def _fill_or_none(self, items: _Items, out: memoryview, base: int) -> _Items | None:
        """`_fill`; None if the system refused the use of the cache."""
        return self._attempt(lambda: self._fill(items, out, base))

    def _fill(self, items: _Items, out: memoryview, base: int) -> _Items:
        """Put what the cache has of some items into ``out``, which begins at byte ``base``; gives what it has not."""
        cache = self._cache
        if cache is None:
            return items
        self._known.refresh()
        places = [(self._known.find(self._digests[i]), i) for i in items]
        lost = [i for place, i in places if place is None]
        used: set[str] = set()
        count = 0
        there = sorted((place, i) for place, i in places if place is not None)
        for segment, group in groupby(there, key=lambda entry: entry[0][0]):
            try:
                fd = cache.open_segment(segment)
            except FileNotFoundError:
                lost += [i for _, i in group]
                continue
            try:
                for (_, at, length), i in group:
                    place = int(self._offset[i]) - base
                    part = out[place : place + int(self._end[i] - self._offset[i])]
                    whole = length == len(part) and os.preadv(fd, [part], at) == length
                    if whole and blake3.blake3(part).digest() == self._digests[i]:
                        count += length
                        # The cache keeps no padding, and the memory may have been in use before.
                        after = int(self._offset[i + 1]) - base if i + 1 < len(self._offset) else len(out)
                        padding = out[place + length : max(after, place + length)]
                        padding[:] = bytes(len(padding))
                        continue
                    if not self._damaged:
                        _LOG.warning("%s: damaged blocks in %s are fetched again", self.name, cache.folder)
                    self._damaged = True
                    cache.forget(self._digests[i], segment)
                    lost.append(i)
            finally:
                os.close(fd)
            used.add(segment_name(segment))
        with self._lock:
            self.bytes_cached += count
            self._used |= used
        return sorted(lost)

    def _share(self, missing: _Items, out: memoryview, base: int) -> tuple[_Items | None, bool]:
        """Read those of the missing items that nobody else is reading; if there are none, wait until some are there.

        Returns:
            The items that are missing still, None if the cache failed; and whether all that was read is sound.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            check_wanted()
            lease = self._lease()
            if lease is None:
                return [], self._read(missing, out, base)
            with lease:
                mine = missing if time.monotonic() > deadline else self._take(lease, missing)
                if mine:
                    # Their holder may have stored them, and let them go, since the cache was looked at.
                    left = self._fill_or_none(mine, out, base)
                    sound = self._read(mine if left is None else left, out, base)
                    return sorted(set(missing) - set(mine)), sound
            left = self._fill_or_none(missing, out, base)
            if left is None or len(left) < len(missing):
                return left, True
            time.sleep(_PAUSE)

    def _read(self, items: _Items, out: memoryview, base: int) -> bool:
        """Read items in as few ranges as they make, put them into ``out`` and keep them; False if one is damaged."""
        sound = True
        for run in _runs(items):
            start, stop = int(self._offset[run[0]]), int(self._end[run[-1]])
            # The padding behind it comes along where it was asked for, so that ranges tile.
            if (after := run[-1] + 1) < len(self._offset):
                stop = min(int(self._offset[after]), base + len(out))
            data = out[start - base : stop - base]
            self._direct(start, data)
            sound = self._keep(run, data, start) and sound
        return sound

    def _keep(self, items: _Items, view: memoryview, base: int) -> bool:
        """Store items out of ``view``, which begins at byte ``base``; False if one of them is not what it should be."""
        blocks: list[tuple[bytes, Buffer]] = []
        for i in items:
            part = view[int(self._offset[i]) - base : int(self._end[i]) - base]
            if blake3.blake3(part).digest() == self._digests[i]:
                blocks.append((self._digests[i], part))
        cache = self._cache
        if cache and blocks and not cache.read_only and not self._full:
            spare = self._used | {self._root.hex()}
            name = self._attempt(lambda: cache.put(blocks, self._known, spare))
            with self._lock:
                if name is None:
                    # What this container holds is not given up for what follows: the first blocks are worth most.
                    self._full = True
                else:
                    self._used.add(name)
        return len(blocks) == len(items)


def _runs(items: Sequence[int]) -> Iterator[_Items]:
    """Consecutive numbers, run by run."""
    for _, group in groupby(enumerate(items), key=lambda entry: entry[1] - entry[0]):
        yield [i for _, i in group]
