"""A cache of blocks on this machine's disk, for files that are read over a network.

Blocks are kept by the BLAKE3 digest of their stored bytes, so budgets, files that share blocks, and processes share
them. What one request brings is one segment: a file of whole blocks, never changed, written under another name, flushed
and renamed, and then entered in the catalogue. Heads are kept by their root. Nothing here is trusted: blocks are
compared with their digests and heads with their roots when they are read.

A file for each block would be simpler, and dearer: a file and a flush for each of 100,000 blocks where segments of
4 MiB need a few hundred. `tools/bench/cache_layout.py` measures both.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import blake3

from . import catalogue
from .cache_heads import HeadStore, write_whole
from .catalogue import Catalogue, locked
from .leases import Leases
from .source import Buffer

#: The size limit where none is given: this much, or this share of what the disk has free for it, whichever is less.
LIMIT_BYTES: Final = 20 << 30
LIMIT_SHARE: Final = 10
#: Of the limit, what an eviction leaves, so that not every block that comes means another one.
_LOW_WATER: Final = 0.9
#: Seconds after which a segment that is read counts as used again.
_TOUCH: Final = 60.0
#: Seconds after which what no process can be writing any more is removed.
_ABANDONED: Final = 3600.0


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds.

    Attributes:
        folder: where it is. limit: bytes that it may have.
        size: bytes of segments and heads. n_blocks, n_segments, n_heads: how many there are.
    """

    folder: str
    limit: int
    size: int
    n_blocks: int
    n_segments: int
    n_heads: int


@dataclass(frozen=True, slots=True)
class _File:
    used: float
    size: int
    path: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


class BlockCache:
    """The cache in one folder. Several processes may use it at once.

    Args:
        folder: made when something is stored; only its owner may read it.
        limit: bytes that it may have; None: 20 GiB, or a tenth of what the disk has free for it if that is less.
            With 0 it is read, and nothing is added.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        self.folder = os.fspath(folder)
        # Another layout gets another folder: old and new versions do not read each other's.
        self._base = os.path.join(self.folder, "blocks.1")
        self._segments = os.path.join(self._base, "segments")
        self.heads = HeadStore(self._base)
        self._log = os.path.join(self._base, "catalogue")
        self._limit = limit

    @property
    def limit(self) -> int:
        """Bytes that the cache may have."""
        if self._limit is None:
            self._limit = min(LIMIT_BYTES, (_free_bytes(self.folder) + self._size()) // LIMIT_SHARE)
        return self._limit

    @property
    def read_only(self) -> bool:
        """Whether nothing is added: its limit was set to 0."""
        return self._limit == 0

    def frozen(self) -> "BlockCache":
        """The same cache, to be read only."""
        return BlockCache(self.folder, 0)

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            OSError: they cannot be made.
        """
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        for path in (self._base, self._segments, *self.heads.folders):
            os.makedirs(path, mode=0o700, exist_ok=True)

    def catalogue(self, digests: Sequence[bytes]) -> Catalogue:
        """What is known of some blocks."""
        return Catalogue(self._log, digests)

    def leases(self, name: bytes) -> Leases:
        """Leases of ranges of the file of a root, or of a digest of a URI."""
        return Leases(os.path.join(self._base, "leases"), name)

    # Blocks

    def open_segment(self, segment: int) -> int:
        """A descriptor of a segment, which counts as used now.

        Raises:
            FileNotFoundError: it was removed.
        """
        fd = os.open(self._segment(segment), os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):  # a folder that may only be read
            if time.time() - os.fstat(fd).st_mtime > _TOUCH:
                os.utime(fd)
        return fd

    def put(self, blocks: Sequence[tuple[bytes, Buffer]], known: Catalogue, spare: set[str]) -> str | None:
        """Keep blocks, each with its digest, which the caller has compared, as one segment.

        Args:
            known: of which the total is taken to see whether there is room.
            spare: names of segments and heads that are not removed to make room.

        Returns:
            The name of the segment; None if there was no room.

        Raises:
            OSError: it cannot be written.
        """
        size = sum(len(data) for _, data in blocks)
        if size > self.limit:
            return None
        if known.total + size > self.limit and self._evict(self.limit - size, spare) + size > self.limit:
            return None
        segment = secrets.randbits(63) | 1
        offsets = []
        at = 0
        for _, data in blocks:
            offsets.append(at)
            at += len(data)
        write_whole(self._segment(segment), [data for _, data in blocks])
        rows = catalogue.make_rows(segment, [d for d, _ in blocks], offsets, [len(data) for _, data in blocks])
        with locked(self._log):
            catalogue.append(self._log, rows)
        return segment_name(segment)

    def forget(self, digest: bytes, segment: int) -> None:
        """Take a block that turned out damaged, or lost, out of the catalogue."""
        catalogue.forget(self._log, digest, segment)

    def _segment(self, segment: int) -> str:
        return os.path.join(self._segments, segment_name(segment))

    # Upkeep

    def _files(self) -> Iterator[_File]:
        for folder in (self._segments, self.heads.folders[0]):
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        yield _File(stat.st_mtime, stat.st_size, entry.path)

    def _size(self) -> int:
        return sum(file.size for file in self._files())

    def _evict(self, limit: int, spare: set[str]) -> int:
        """Bring the cache to at most ``limit`` bytes, the least recently used first; gives the bytes that are left."""
        with locked(self._log):
            rows = catalogue.read_all(self._log)
            named = [segment_name(segment) for segment in rows["segment"].tolist()]
            known = set(named)
            files, old = sorted(self._files(), key=lambda file: file.used), time.time() - _ABANDONED
            size = sum(file.size for file in files)
            wanted = int(max(limit, 0) * _LOW_WATER) if size > limit else size
            gone = set()
            for file in files:
                is_segment = os.path.dirname(file.path) == self._segments
                abandoned = file.used < old and (file.name.endswith(".part") or (is_segment and file.name not in known))
                if abandoned or (size > wanted and file.name not in spare and not file.name.endswith(".part")):
                    with suppress(FileNotFoundError):
                        os.unlink(file.path)
                    size -= file.size
                    gone.add(file.name)
            left = {file.name for file in files} - gone
            catalogue.rewrite(self._log, rows[[name in left for name in named]])
        return size

    def info(self) -> CacheInfo:
        """What there is."""
        files = [file for file in self._files() if not file.name.endswith(".part")]
        n_heads = sum(os.path.dirname(file.path) != self._segments for file in files)
        n_blocks = len(catalogue.read_all(self._log))
        size = sum(file.size for file in files)
        return CacheInfo(self.folder, self.limit, size, n_blocks, len(files) - n_heads, n_heads)

    def clear(self) -> int:
        """Remove everything; gives the bytes that were freed. Processes that use the cache just find nothing.

        Raises:
            OSError: it cannot be removed.
        """
        if not os.path.isdir(self._base):
            return 0
        with locked(self._log):
            with suppress(FileNotFoundError):
                os.unlink(self._log)
            freed = 0
            for file in list(self._files()):
                with suppress(FileNotFoundError):
                    os.unlink(file.path)
                freed += file.size
            self.heads.forget_names()
        return freed

    def verify(self) -> tuple[int, int]:
        """Compare every block with its digest, and take the damaged ones out of the catalogue.

        Returns:
            How many blocks are sound, and how many were damaged or lost.
        """
        sound = damaged = 0
        rows = catalogue.read_all(self._log)
        rows = rows[rows["segment"].argsort(kind="stable")]
        for row in rows:
            digest, segment = row["digest"].tobytes(), int(row["segment"])
            try:
                with open(self._segment(segment), "rb") as file:
                    data = os.pread(file.fileno(), int(row["length"]), int(row["offset"]))
            except OSError:
                data = b""
            if blake3.blake3(data).digest() == digest:
                sound += 1
            else:
                damaged += 1
                self.forget(digest, segment)
        return sound, damaged


def segment_name(segment: int) -> str:
    """The name of the file of a segment."""
    return f"{segment:016x}"


def _free_bytes(folder: str) -> int:
    """Bytes that are free on the disk of a folder, which may not be there yet."""
    for place in (Path(folder), *Path(folder).parents):
        with suppress(OSError):
            stat = os.statvfs(place)
            return stat.f_bavail * stat.f_frsize
    return 0
