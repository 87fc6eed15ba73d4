"""Where bytes come from: one small protocol, and its sources for memory, local files and any fsspec file system.

HTTP and S3 have modules of their own (`bsformat.http`, `bsformat.s3`), because there a wrong answer comes without an
error unless every response is checked.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from .buffers import new_bytes
from .errors import (
    AccessDeniedError,
    NotFoundError,
    ShortReadError,
    SourceChangedError,
    SourceError,
)
from .network import Signals, without_secrets

Buffer = bytes | bytearray | memoryview
#: Called with how many leading bytes of a buffer are in place, as they come. A smaller number than before takes back
#: those after it.
There = Callable[[int], object]
#: Bytes that a local file gives at a time to who wants to know what is there: a part of the processor's caches.
_STEP = 1 << 19
_HOST_ALONE = re.compile(r"https?://[^/]*", re.IGNORECASE)


@runtime_checkable
class ByteSource(Protocol):
    """An object of known size whose ranges can be read. Safe to call from several threads.

    Attributes:
        name: path or URI, for messages.
    """

    name: str

    def start(self, length: int) -> tuple[Buffer, int]:
        """The first ``length`` bytes, or all if there are fewer, and the size of the object: one request."""
        ...

    def get(self, offset: int, length: int) -> Buffer:
        """Exactly ``length`` bytes from ``offset``.

        Raises:
            SourceError: they could not be read, or other bytes came.
        """
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...


@runtime_checkable
class FillingSource(ByteSource, Protocol):
    """A source that reads into memory of the caller."""

    def get_into(self, offset: int, out: memoryview) -> object:
        """Fill ``out`` with the bytes from ``offset``.

        Returns:
            True if the blocks in it were all compared with their digests; anything else if not.

        Raises:
            SourceError: as `get`; what is in ``out`` then means nothing.
        """
        ...


class SiblingSource(Protocol):
    """A source that knows where objects lie that go with its own: the volumes of a file (spec §4.8)."""

    def sibling(self, name: str) -> ByteSource:
        """The object of this name beside this one; whether it is there is seen when it is read."""
        ...


@runtime_checkable
class TellingSource(FillingSource, Protocol):
    """A source that says how far it is while it reads."""

    def get_telling(self, offset: int, out: memoryview, there: There) -> object:
        """As `FillingSource.get_into`; calls ``there`` in the same thread, at any times."""
        ...


def signals_of(source: ByteSource) -> Signals:
    """What a source notices of its server; of one that notices nothing, nothing."""
    signals = getattr(source, "signals", None)
    return signals if isinstance(signals, Signals) else Signals()


def fill(source: ByteSource, offset: int, out: memoryview, there: There | None = None) -> bool:
    """Fill ``out`` from any source, as `FillingSource.get_into`; whether its blocks were compared.

    Args:
        there: told how far it is, by a source that can.
    """
    if there is not None and (get_telling := getattr(source, "get_telling", None)) is not None:
        return get_telling(offset, out, there) is True
    get_into = getattr(source, "get_into", None)  # cheaper than asking for the protocol at every range
    if get_into is not None:
        return get_into(offset, out) is True
    out[:] = checked(source.get(offset, len(out)), offset, len(out), source.name)
    return False


class MemorySource:
    """Bytes in memory; ``siblings`` are the objects that go with them, by name: the volumes of a file."""

    def __init__(self, data: Buffer, name: str = "memory", siblings: Mapping[str, Buffer] | None = None) -> None:
        self.name = name
        self._data = memoryview(data)
        self._siblings = siblings or {}

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        return self._data[:length], len(self._data)

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`."""
        return checked(self._data[offset : offset + length], offset, length, self.name)

    def sibling(self, name: str) -> ByteSource:
        """See `SiblingSource`."""
        if name not in self._siblings:
            raise NotFoundError("no such object", where=name)
        return MemorySource(self._siblings[name], name)

    def close(self) -> None:
        """Nothing to release."""


class FileSource:
    """A local file, held open, so that one file is read even if its name comes to mean another."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._folder = os.path.dirname(os.path.abspath(path))  # now: the process may change its own
        self._fd = -1
        with translated(path):
            # A pipe that nobody writes to would be waited for until somebody does.
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            with translated(path):
                self._identity = self._stat()
                kind = os.fstat(self._fd).st_mode
                if stat.S_ISDIR(kind):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if not stat.S_ISREG(kind):
                    raise SourceError("is no plain file, and cannot be read by ranges: save it as one", where=path)
        except BaseException:
            self.close()
            raise

    def _stat(self) -> tuple[int, int]:
        now = os.fstat(self._fd)
        return now.st_size, now.st_mtime_ns

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        size = self._identity[0]
        return self.get(0, min(length, size)), size

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`; a file that is written to in between is refused."""
        out = new_bytes(length, self.name, offset)
        self.get_into(offset, memoryview(out))
        return out

    def get_into(self, offset: int, out: memoryview) -> None:
        """See `FillingSource.get_into`."""
        self._read(offset, out, len(out), lambda count: None)

    def get_telling(self, offset: int, out: memoryview, there: There) -> None:
        """See `TellingSource.get_telling`."""
        self._read(offset, out, _STEP, there)

    def _read(self, offset: int, out: memoryview, step: int, there: There) -> None:
        done = 0
        with translated(self.name):
            while done < len(out):
                count = os.preadv(self._fd, [out[done : done + step]], offset + done)
                if count == 0:
                    break
                done += count
                there(done)
            if self._stat() != self._identity:
                raise SourceChangedError("the file was written to while it was read; open it again", where=self.name)
        checked(out[:done], offset, len(out), self.name)

    def sibling(self, name: str) -> ByteSource:
        """See `SiblingSource`: the file in the folder of this one's name, links not followed."""
        return FileSource(os.path.join(self._folder, name))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class FsspecSource:
    """An object of any fsspec file system: hubs, archives, and so on."""

    def __init__(self, fs: Any, path: str, name: str) -> None:
        self.name = name
        self._fs, self._path = fs, path

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `ByteSource.start`."""
        with translated(self.name):
            info = self._fs.info(self._path)
        size = info.get("size")
        if info.get("type") == "directory" or size is None:
            raise SourceError("is no file with a known size; name one .bstk file", where=self.name)
        return (self.get(0, min(length, size)) if size and length else b""), int(size)

    def get(self, offset: int, length: int) -> Buffer:
        """See `ByteSource.get`."""
        with translated(self.name):
            data = self._fs.cat_file(self._path, start=offset, end=offset + length)
        return checked(data, offset, length, self.name)

    def sibling(self, name: str) -> ByteSource:
        """See `SiblingSource`."""
        return FsspecSource(self._fs, beside(self._path, name), beside(self.name, name))

    def close(self) -> None:
        """Nothing to release: fsspec shares its file systems."""


def beside(path: str, name: str) -> str:
    """A path, key or URL with another last segment. The host of a URL is none, also where nothing follows it."""
    if _HOST_ALONE.fullmatch(path):
        return f"{path}/{name}"
    folder, slash, _ = path.rpartition("/")
    return folder + slash + name


def within(offset: int, length: int, size: int, name: str) -> None:
    """Refuse a range that reaches beyond the ``size`` of an object, without asking for it."""
    if offset + length > size:
        raise ShortReadError(
            f"bytes {offset}-{offset + length - 1} were asked for, but the object has {size}", where=name, offset=offset
        )


def checked(data: Buffer, offset: int, length: int, name: str) -> Buffer:
    """``data``, if it has the ``length`` that was asked for."""
    if len(data) != length:
        raise ShortReadError(
            f"{len(data)} bytes came, {length} were asked for: the object is shorter than it said, or was replaced",
            where=name,
            offset=offset,
        )
    return data


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn what file systems raise into this project's errors, in one line."""
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"no such file, object or bucket{_detail(error)}", where=name) from None
    except PermissionError as error:
        raise AccessDeniedError(f"access denied{_detail(error)}", where=name) from None
    except Exception as error:  # a file system may raise anything; each becomes one line
        raise SourceError(f"cannot be read: {type(error).__name__}{_detail(error)}", where=name) from None


def _detail(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = without_secrets(" ".join(text.split()))
    return f" ({text})" if text else ""
