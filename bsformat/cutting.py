"""Writing a file as several objects: where it is cut, and how all of them take their places."""

import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO, Any, Final, cast

import numpy as np

from . import registry
from .atomic import new_beside, publish, replace_file, writing
from .errors import BstkError, WriteError
from .head import read_head
from .metadata import Metadata, Volume
from .metadata_reader import is_volume_name
from .source import Buffer, FileSource
from .units import format_size

#: Files that are open at once while volumes are written.
_OPEN: Final = 64
_SUFFIX: Final = ".bstk"
#: Bytes copied at a time.
_STEP: Final = 4 << 20


def cut(
    path: str, meta: Metadata, ends: Sequence[int], volume_size: int, blocks_offset: Callable[[Metadata], int]
) -> Metadata:
    """The metadata with volumes of at most ``volume_size`` bytes, as full as they can be.

    Args:
        ends: where each block ends, counted from the start of the first.
        blocks_offset: where the first block starts in a file of that metadata.

    Raises:
        WriteError: reason ``volume-size``: the head or a block is larger, or there would be too many. Reason ``write``:
            the file has a name that volumes cannot have.
    """
    aligned = np.array([registry.align(end) for end in ends[:-1]] + [ends[-1]], np.int64)
    reserved = 0
    while reserved <= volume_size:
        starts = _starts(path, aligned, volume_size, reserved)
        names = [volume_name(path, number) for number in range(2, len(starts) + 2)]
        made = replace(meta, volumes=tuple(map(Volume, names, starts)))
        # A longer table of volumes makes the head longer, and so the first volume's room shorter.
        needed = blocks_offset(made)
        if needed <= reserved:
            return made
        reserved = needed
    raise WriteError(
        f"a volume of {volume_size} bytes ({format_size(volume_size)}) does not hold the head and the attachments, "
        f"{reserved} bytes; name a larger size",
        where=path,
        reason="volume-size",
    )


def _starts(path: str, ends: Any, volume_size: int, reserved: int) -> list[int]:
    """The first block of each volume after the first."""
    out: list[int] = []
    block = int(np.searchsorted(ends, volume_size - reserved, side="right"))
    while block < len(ends):
        out.append(block)
        begin = int(ends[block - 1]) if block else 0
        block = int(np.searchsorted(ends, begin + volume_size, side="right"))
        if block == out[-1]:
            raise WriteError(
                f"a volume of {volume_size} bytes ({format_size(volume_size)}) does not hold block {block}, which has "
                f"{int(ends[block]) - begin}; name a larger size",
                where=path,
                reason="volume-size",
            )
        if len(out) > registry.MAX_VOLUMES:
            raise WriteError(
                f"volumes of {volume_size} bytes would be more than {registry.MAX_VOLUMES}; name a larger size",
                where=path,
                reason="volume-size",
            )
    return out


def volume_name(path: str, number: int) -> str:
    """What a volume of the file ``path`` is called: ``model.bstk`` is followed by ``model.00002.bstk``.

    Raises:
        WriteError: the file has a name that volumes cannot have.
    """
    name = f"{os.path.basename(path).removesuffix(_SUFFIX)}.{number:05d}{_SUFFIX}"
    if not is_volume_name(name):
        raise WriteError(
            f"volumes cannot be called {name!r}: name an output of letters A to Z, digits, '_', '-' and '.'", where=path
        )
    return name


def replace_volumes(path: str, names: Sequence[str], bounds: Sequence[int], emit: Callable[[IO[bytes]], None]) -> None:
    """Write what ``emit`` writes to ``path`` and the volumes beside it, flush all to disk, and rename them.

    The first volume takes its name last: until then there is no file, or the old one if nothing of it is replaced.
    Volumes of the old file that are left over are removed, but for those that another file beside it has too.

    Args:
        names: of the volumes after the first.
        bounds: where each volume begins in the file, and where the last one ends.

    Raises:
        WriteError: a volume of another file, whose first one was renamed or copied, has one of the names.
    """
    folder = os.path.dirname(os.path.abspath(path))
    # As far as this module named them.
    mine = re.compile(re.escape(os.path.basename(path).removesuffix(_SUFFIX)) + r"\.\d{5}" + re.escape(_SUFFIX))
    old = {name for name in _volumes_of(path) if mine.fullmatch(name)}
    others = _volumes_of_others(path, {*old, *names})
    if taken := sorted(others.keys() & set(names)):
        raise WriteError(
            f"its volume {taken[0]} would replace that of {others[taken[0]]}, which is read from there: name another "
            "output, or another folder",
            where=path,
        )
    if not names:
        replace_file(path, emit)
    else:
        places = [path, *(os.path.join(folder, name) for name in names)]
        with _Pieces(places, bounds) as pieces:
            emit(cast(IO[bytes], pieces))
            pieces.finish()
            if any(os.path.exists(place) for place in places[1:]):
                with suppress(FileNotFoundError):
                    os.unlink(path)  # rather no file than one whose volumes are of another
            pieces.publish()
    for name in old - set(names) - others.keys():
        with suppress(OSError):
            os.unlink(os.path.join(folder, name))


def split(path: str) -> tuple[str, ...]:
    """Cut a file that lies in one object, and says how it is cut, into its volumes. Its root stays.

    Returns:
        The names of the volumes after the first; none if there is nothing to cut.

    Raises:
        SourceError, FormatError: it cannot be read. WriteError: the volumes cannot be written, or one has the name of
            the file, or one that does not end in ``.bstk``; it is as it was.
    """
    source = FileSource(path)
    try:
        head = read_head(source, None)
        block, volumes = head.superblock, head.metadata.volumes
        if not volumes or block.own_length != block.file_length:
            return ()
        starts = [int(head.index.offset[volume.first_block]) for volume in volumes]
        first = replace(block, object_length=starts[0]).encode()

        def emit(out: IO[bytes]) -> None:
            out.write(first)
            for at in range(len(first), block.file_length, _STEP):
                out.write(source.get(at, min(_STEP, block.file_length - at)))

        names = tuple(volume.name for volume in volumes)
        _check_own_names(path, names)
        with writing(path):
            replace_volumes(path, names, [0, *starts, block.file_length], emit)
        return names
    finally:
        source.close()


def _check_own_names(path: str, names: Sequence[str]) -> None:
    """Refuse volumes in the file's own place, or in that of files of another kind: its author chose the names.

    Raises:
        WriteError
    """
    own = os.path.basename(path).lower()
    for name in names:
        if name.lower() == own or not name.lower().endswith(_SUFFIX):
            raise WriteError(
                f"cannot be cut as it says, since one of its volumes is called {name!r}: repack it, which gives them "
                "other names",
                where=path,
            )


def _volumes_of(path: str) -> set[str]:
    """The names of the other objects that a file is read from; none of what is no file."""
    try:
        source = FileSource(path)
    except BstkError:
        return set()
    try:
        head = read_head(source, None)
        apart = head.superblock.own_length != head.superblock.present_length
        return {v.name for v in head.metadata.volumes} if apart else set()
    except BstkError:
        return set()
    finally:
        source.close()


def _volumes_of_others(path: str, names: set[str]) -> dict[str, str]:
    """Which of some files beside ``path`` another file there is read from: their names, each with the name of one."""
    folder, own = os.path.split(os.path.abspath(path))
    there = {name for name in names if os.path.lexists(os.path.join(folder, name))}
    if not there:
        return {}
    out: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == own or entry.name in there or not os.path.isfile(entry.path):
                continue
            if entry.name.startswith(".") and entry.name.endswith(".part"):
                continue  # what was being written when a process was killed is no file that is kept
            linked = entry.is_symlink() and os.path.exists(path) and os.path.samefile(entry.path, path)
            out |= dict.fromkeys(() if linked else _volumes_of(entry.path) & there, entry.name)
    return out


class _Pieces:
    """What looks like one file to who writes it, and is several under other names; gone unless they are published."""

    def __init__(self, places: Sequence[str], bounds: Sequence[int]) -> None:
        self._places, self._bounds = places, bounds
        self._temporary: dict[int, str] = {}
        self._open: OrderedDict[int, int] = OrderedDict()
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def writelines(self, parts: Iterable[Buffer]) -> None:
        for part in parts:
            self.write(part)

    def write(self, data: Buffer) -> int:
        view = memoryview(data)
        while view:
            number = bisect_right(self._bounds, self._at, hi=len(self._places)) - 1
            room = self._bounds[number + 1] - self._at
            done = os.pwrite(self._file(number), view[:room], self._at - self._bounds[number])
            view, self._at = view[done:], self._at + done
        return len(data)

    def _file(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            if len(self._open) == _OPEN:
                os.close(self._open.popitem(last=False)[1])
            if number in self._temporary:
                self._open[number] = os.open(self._temporary[number], os.O_RDWR | os.O_CLOEXEC)
            else:
                self._open[number], self._temporary[number] = new_beside(self._places[number])
        return self._open[number]

    def finish(self) -> None:
        """Give each its length, with zeros where nothing was written, and flush it to disk."""
        for number in range(len(self._places)):
            fd = self._file(number)
            os.ftruncate(fd, self._bounds[number + 1] - self._bounds[number])
            os.fsync(fd)

    def publish(self) -> None:
        """Rename all, the first one last."""
        for number in reversed(range(len(self._places))):
            publish(self._temporary[number], self._places[number])
            del self._temporary[number]

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *details: object) -> None:
        for fd in self._open.values():
            os.close(fd)
        for name in self._temporary.values():
            with suppress(OSError):
                os.unlink(name)
