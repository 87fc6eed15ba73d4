"""Where the cache keeps which block: a log of rows of 64 bytes, appended under a lock, read without one.

A row names a block by its digest, and the segment, offset and length where its stored bytes are; a later row holds
against an earlier one, and a length of 0 says that the block is not there after all. Each row has a check word, so that
rows that a crash tore, or a disk lost, count as not there. The log decides what is found, never what is right: every
block is compared with its digest when it is read.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: One row, 64 bytes, little-endian.
ROW: Final = np.dtype([("digest", "V32"), ("segment", "<u8"), ("offset", "<u8"), ("length", "<u8"), ("check", "<u8")])
#: Odd, so that every bit of a word changes the check word; the last one keeps a row of zeros from being one.
_FACTORS: Final = np.array(
    [0x9E3779B97F4A7C15 + 2 * i * 0x632BE59BD9B4E019 & (1 << 64) - 1 | 1 for i in range(7)], "<u8"
)
_SALT: Final = np.uint64(0x6B74736268636163)
#: Seconds that a process waits for the lock, which is held for milliseconds: only a stopped one holds it longer.
LOCK_PATIENCE: Final = 10.0

Rows = npt.NDArray[Any]
#: segment, offset in it, length
Location = tuple[int, int, int]


def make_rows(segment: int, digests: Sequence[bytes], offsets: Sequence[int], lengths: Sequence[int]) -> Rows:
    """Rows for blocks of one segment, sealed with their check words."""
    rows = np.zeros(len(digests), ROW)
    rows["digest"] = np.frombuffer(b"".join(digests), "V32")
    rows["segment"], rows["offset"], rows["length"] = segment, offsets, lengths
    rows["check"] = _checks(rows)
    return rows


def _checks(rows: Rows) -> npt.NDArray[np.uint64]:
    words = rows.view("<u8").reshape(-1, 8)[:, :7]
    mixed = words ^ (words >> np.uint64(29))
    total: npt.NDArray[np.uint64] = (mixed * _FACTORS).sum(axis=1, dtype=np.uint64) ^ _SALT
    return total


def _good(data: bytes) -> npt.NDArray[np.bool_]:
    rows = np.frombuffer(data, ROW)
    good: npt.NDArray[np.bool_] = rows["check"] == _checks(rows)
    return good


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of a log; it dies with its holder.

    Raises:
        TimeoutError: another process held it all the time.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {path}.lock") from None
                time.sleep(0.002)
        yield
    finally:
        os.close(fd)


def append(path: str, rows: Rows) -> None:
    """Add rows; the lock must be held. What a crash left of a torn row is cut off first."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        end = size - size % ROW.itemsize
        if end != size:
            os.ftruncate(fd, end)
        data = memoryview(rows.tobytes())
        while data:
            done = os.pwrite(fd, data, end)
            data, end = data[done:], end + done
    finally:
        os.close(fd)


def read_all(path: str) -> Rows:
    """Every sound row that holds, the latest of each digest; rows of length 0 are left out."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        data = b""
    data = data[: len(data) - len(data) % ROW.itemsize]
    rows = np.frombuffer(data, ROW)[_good(data)]
    latest = {digest.tobytes(): i for i, digest in enumerate(rows["digest"])}
    rows = rows[np.fromiter(latest.values(), np.int64, len(latest))]
    return rows[rows["length"] > 0]


def rewrite(path: str, rows: Rows) -> None:
    """Replace the log by these rows; the lock must be held."""
    temporary = f"{path}.part"
    with open(temporary, "wb") as file:
        file.write(rows.tobytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Catalogue:
    """The rows of some digests, kept up to date with a log that other processes write too. Safe to call from
    several threads.

    Attributes:
        total: bytes of all blocks in the log, as far as it has been read.
    """

    def __init__(self, path: str, digests: Sequence[bytes]) -> None:
        self._path = path
        self._mine = np.unique(np.frombuffer(b"".join(d[:8] for d in digests), "<u8"))
        self._found: dict[bytes, Location] = {}
        self._identity: tuple[int, int] | None = None
        self._at = 0
        self._lock = threading.Lock()
        self.total = 0

    def find(self, digest: bytes) -> Location | None:
        """Where a block is, as of the last `refresh`."""
        return self._found.get(digest)

    def refresh(self) -> None:
        """Read the rows that came since the last time; all of them if the log was rewritten."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._start(None)
            return
        try:
            stat = os.fstat(fd)
            identity = (stat.st_dev, stat.st_ino)
            if identity != self._identity or stat.st_size < self._at:
                self._start(identity)
            length = stat.st_size - self._at
            length -= length % ROW.itemsize
            if length:
                self._take(os.pread(fd, length, self._at))
        finally:
            os.close(fd)

    def _start(self, identity: tuple[int, int] | None) -> None:
        self._identity, self._at, self.total = identity, 0, 0
        self._found.clear()

    def _take(self, data: bytes) -> None:
        data = data[: len(data) - len(data) % ROW.itemsize]
        good = _good(data)
        if not good.any():
            return
        # Rows after the last sound one may be just being written: they are looked at again the next time.
        stop = int(np.flatnonzero(good)[-1]) + 1
        rows = np.frombuffer(data, ROW)[:stop][good[:stop]]
        self._at += stop * ROW.itemsize
        self.total += int(rows["length"].sum())
        first = rows.view("<u8").reshape(-1, 8)[:, 0]
        for row in rows[np.isin(first, self._mine)]:
            digest, length = row["digest"].tobytes(), int(row["length"])
            if length:
                self._found[digest] = (int(row["segment"]), int(row["offset"]), length)
            else:
                self._found.pop(digest, None)


def forget(path: str, digest: bytes, segment: int) -> None:
    """Say that a segment does not hold a block after all, unless a later row names another one."""
    with suppress(OSError), locked(path):
        rows = read_all(path)
        if bool(np.any((rows["digest"] == np.frombuffer(digest, "V32")[0]) & (rows["segment"] == segment))):
            append(path, make_rows(segment, [digest], [0], [0]))
