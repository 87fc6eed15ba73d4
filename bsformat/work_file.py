"""The file that a fetch fills before it becomes the output: sparse, of one process at a time, and trusted for nothing.

Whatever ended the process that filled it, what is in it counts as far as digests say so, and no journal is needed.
"""

import errno
import fcntl
import os
from contextlib import suppress
from types import TracebackType

from . import superblock
from .errors import FormatError, WriteError
from .source import Buffer


class WorkFile:
    """A file beside the output, held open and locked; an empty one is removed when it is closed.

    Args:
        path: made if it is not there.

    Raises:
        WriteError: another process fills it, or it is a link. OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        while True:
            # What a link leads to is somebody else's, and the output would become that link.
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise WriteError("is a link: remove it, or name another output", where=path) from None
                raise
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have renamed it, or removed it, before the lock was had.
                if os.path.samestat(os.fstat(self._fd), os.stat(path)):
                    return
            except BlockingIOError:
                self._close()
                message = "another fetch is filling it: wait for that one, or name another output"
                raise WriteError(message, where=path) from None
            except FileNotFoundError:
                pass
            except BaseException:
                self._close()
                raise
            self._close()

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, or those of them that there are."""
        parts = []
        while length and (part := os.pread(self._fd, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def write(self, offset: int, data: Buffer) -> None:
        """Put bytes at ``offset``. Safe to call from several threads.

        Raises:
            OSError: the disk is full, say.
        """
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done

    def head(self) -> bytes | None:
        """The stored head, compared with its root; None where there is none, or it is not whole."""
        try:
            block = superblock.decode(self.read(0, superblock.SIZE), self.path)
        except FormatError:
            return None
        head = self.read(0, block.head_length)
        middle = superblock.SIZE + block.metadata_stored
        root = superblock.compute_root(block.identity(), head[superblock.SIZE : middle], head[middle:])
        return head if len(head) == block.head_length and root == block.root else None

    def restart(self) -> None:
        """Forget everything in it."""
        os.ftruncate(self._fd, 0)

    def publish(self, path: str, head: bytes, length: int) -> None:
        """Give it its superblock and its length, flush it to disk and rename it to ``path``.

        Raises:
            OSError: it cannot be written, or not be renamed.
        """
        self.write(0, head)
        os.ftruncate(self._fd, length)
        os.fsync(self._fd)
        os.replace(self.path, path)
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> "WorkFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            if os.fstat(self._fd).st_size == 0 and os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                os.unlink(self.path)
        self._close()
