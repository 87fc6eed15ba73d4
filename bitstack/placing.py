"""Files and folders that appear under their name when they are complete, or not at all."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bsformat.atomic import new_beside, writing
from bsformat.errors import WriteError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives the name of an empty file beside ``path``, and puts what was written there in its place at the end.

    Raises:
        WriteError: it cannot be written. Nothing is left behind then, and a file that was there stays.
    """
    with writing(os.fspath(path)):
        fd, name = new_beside(os.fspath(path))
        os.close(fd)
        temporary = Path(name)
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _flush(path.parent)


@contextmanager
def new_folder(path: Path, *, ours: re.Pattern[str], replace: bool) -> Iterator[Path]:
    """Gives an empty folder beside ``path``, and puts it in its place at the end.

    Args:
        ours: matches the names of files that such a folder holds: one that holds anything else is never replaced.
        replace: whether one that is not empty may be.

    Raises:
        WriteError: it is there, or cannot be written. Nothing is left behind then, and what was there stays.
    """
    check_folder(path, ours=ours, replace=replace)
    with writing(os.fspath(path)):
        temporary = path.absolute().parent / f".{path.name}.{secrets.token_hex(4)}.part"
        temporary.mkdir()
        try:
            yield temporary
            for item in temporary.iterdir():
                _flush(item)
            _flush(temporary)
            _put(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _flush(path.absolute().parent)


def check_folder(path: Path, *, ours: re.Pattern[str], replace: bool) -> None:
    """Refuse what `new_folder` would refuse.

    Raises:
        WriteError
    """
    where = os.fspath(path)
    if not path.is_dir():
        if os.path.lexists(path):
            raise WriteError("is no folder: name another with -o", where=where, reason="output-exists")
        if not path.absolute().parent.is_dir():
            raise WriteError("the folder does not exist; create it first", where=os.fspath(path.absolute().parent))
        return
    there = sorted(item.name for item in path.iterdir())
    if strange := [name for name in there if not ours.fullmatch(name)]:
        raise WriteError(
            f"holds {strange[0]!r}, which is no file of such a folder: name an empty or a new one",
            where=where,
            reason="output-exists",
        )
    if there and not replace:
        raise WriteError("exists already; --force replaces it", where=where, reason="output-exists")


def _put(temporary: Path, path: Path) -> None:
    if not path.is_dir() or not any(path.iterdir()):
        os.replace(temporary, path)  # over an empty folder too
        return
    former = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".former"))
    os.replace(path, former)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(former, path)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
