"""Who reads which range: locks on byte ranges that die with the process that holds them.

Processes that load one file at the same time share its ranges out: who gets the lease of a range reads it over the
network and stores it in the cache, the others wait and find it there. A lease is a lock of an open file description
(``F_OFD_SETLK``) on bytes of one file that is always empty, so there is nothing to clean up, and the kernel drops it
when its holder ends, however that happens. Where the system has no such locks every process reads for itself.
"""

import errno
import fcntl
import os
import struct
from types import TracebackType
from typing import Final

#: ``struct flock``: type, whence, start, length, process; padded as a C compiler pads it.
_FLOCK: Final = struct.Struct("@hhqqi0q")
#: Bits of an offset within one file; above them stand 16 bits of the name of the file. Files whose names begin alike
#: wait for each other now and then, which costs time and nothing else.
_OFFSET_BITS: Final = 46


class Leases:
    """Some leases, held until they are released, or this object is gone.

    Args:
        path: the file whose byte ranges stand for the leases; made if it is not there.
        name: of what the ranges are taken: a root, or a digest of a URI; at least 2 bytes.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str, name: bytes) -> None:
        self._base = int.from_bytes(name[:2], "little") << _OFFSET_BITS
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, start: int, stop: int) -> bool:
        """Try for the range [start, stop), in bytes; False while another one holds any of it. Does not wait."""
        mask = (1 << _OFFSET_BITS) - 1
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if command is None:
            return True
        first, last = min(start, mask - 1), min(stop, mask)
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._base + first, max(last - first, 1), 0)
        try:
            fcntl.fcntl(self._fd, command, request)
        except OSError as error:
            # Anything else is a file system without such locks: then every process reads for itself.
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def release(self) -> None:
        """Give up all of them."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Leases":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.release()
