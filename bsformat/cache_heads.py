"""The heads that a cache keeps, by their root, and which root the object of a URI had last."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from .source import Buffer


class HeadStore:
    """Stored metadata and indices of files, one file each, and names: digests of URIs, each with a root.

    Attributes:
        folders: where heads are, and where names are.
    """

    def __init__(self, base: str) -> None:
        self.folders = (os.path.join(base, "heads"), os.path.join(base, "names"))
        self._heads, self._names = self.folders

    def get(self, root: bytes) -> bytes | None:
        """Stored metadata and index of a file, not compared with the root yet."""
        try:
            with open(os.path.join(self._heads, root.hex()), "rb") as file:
                with suppress(OSError):
                    os.utime(file.fileno())
                return file.read()
        except OSError:
            return None

    def put(self, root: bytes, head: Buffer, name: bytes) -> None:
        """Keep stored metadata and index of a file, and that the object of this name had this root last.

        Raises:
            OSError: it cannot be written.
        """
        if not self.has(root):
            write_whole(os.path.join(self._heads, root.hex()), [head])
        if self.root_of(name) != root:
            write_whole(os.path.join(self._names, name.hex()), [root])

    def has(self, root: bytes) -> bool:
        """Whether the head of a file is there."""
        return os.path.exists(os.path.join(self._heads, root.hex()))

    def drop(self, root: bytes) -> None:
        """Remove a head that turned out damaged."""
        with suppress(OSError):
            os.unlink(os.path.join(self._heads, root.hex()))

    def root_of(self, name: bytes) -> bytes | None:
        """The root that the object of a name (the digest of its URI) had last."""
        try:
            with open(os.path.join(self._names, name.hex()), "rb") as file:
                root = file.read()
        except OSError:
            return None
        return root if len(root) == 32 else None

    def forget_names(self) -> None:
        """Remove all names.

        Raises:
            OSError: they cannot be removed.
        """
        with suppress(FileNotFoundError):
            for name in os.listdir(self._names):
                os.unlink(os.path.join(self._names, name))


def write_whole(path: str, parts: Sequence[Buffer]) -> None:
    """Write a file under another name, flush it to disk, and rename it: it is never seen in parts.

    The folder is not flushed: a name that a power cut takes away is a block that is fetched again.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = f"{path}.{os.getpid()}.{threading.get_ident():x}.part"
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
