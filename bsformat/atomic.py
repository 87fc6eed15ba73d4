"""Files that appear complete or not at all, and operating-system errors as one line."""

import errno
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from .errors import WriteError


@contextmanager
def writing(path: str, left: str = "nothing was left behind") -> Iterator[None]:
    """Turn what the operating system says while ``path`` is written into a `WriteError`; ``left`` is what it leaves."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise WriteError(
            f"cannot be written ({error.strerror or error}); {left}: "
            f"{'free some space' if full else 'check the folder'} and try again",
            where=path,
            reason="disk-full" if full else "write",
        ) from None


def spool(path: str) -> IO[bytes]:
    """A nameless file in the folder of ``path``, gone when it is closed."""
    with writing(path):
        return tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path)))


def replace_file(path: str, emit: Callable[[IO[bytes]], None]) -> None:
    """Write what ``emit`` writes next to ``path``, flush it to disk, and rename it over ``path``."""
    fd, temporary = new_beside(path)
    try:
        with os.fdopen(fd, "wb") as out:
            emit(out)
            out.flush()
            os.fsync(out.fileno())
        publish(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def new_beside(path: str) -> tuple[int, str]:
    """A descriptor and the name of an empty file in the folder of ``path``, with the permissions of any new file.

    The system gives it those. To ask for them one would have to change them for a moment, for all threads.
    """
    folder, name = os.path.split(os.path.abspath(path))
    while True:
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        with suppress(FileExistsError):
            return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary


def publish(temporary: str, path: str) -> None:
    """Rename a file that is on the disk to ``path``."""
    os.replace(temporary, path)
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
