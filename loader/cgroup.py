"""What the control groups of this process leave it: versions 1 and 2, every group that it is nested in."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

#: Where the kernel says which groups a process is in, and where their hierarchies are mounted.
PROC: Final = "/proc/self"
#: From here on a limit of version 1 means that there is none: the largest multiple of a page that fits 63 bits.
_UNLIMITED: Final = 1 << 62
#: Bytes that are read of one file of the kernel.
_MOST: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Group:
    """A control group with a limit.

    Attributes:
        path: its folder.
        limit: bytes that all of its processes, and those of the groups in it, may hold.
        used: bytes that they hold, pages of files among them.
        droppable: bytes of those pages that the kernel can drop at once.
    """

    path: str
    limit: int
    used: int
    droppable: int

    @property
    def free(self) -> int:
        """Bytes that may still be allocated, from 0."""
        return max(0, self.limit - self.used + min(self.droppable, self.used))


def limited_groups(proc: str | None = None) -> list[Group]:
    """The groups with a limit that this process is in, innermost first; none where there are no control groups.

    A limit of a group holds for all groups in it together, so that what a sibling holds counts too: each group is
    asked for its own use. Groups above the one that a container is mounted from cannot be seen.

    Args:
        proc: in place of `PROC`.
    """
    proc = PROC if proc is None else proc
    found = []
    for version, mount, folder in places(proc):
        read = _read_v1 if version == 1 else _read_v2
        while True:
            with suppress(OSError, ValueError):
                group = read(folder)
                if group is not None:
                    found.append(group)
            if folder == mount or len(folder) <= len(mount):
                break
            folder = os.path.dirname(folder)
    return found


def places(proc: str) -> Iterator[tuple[int, str, str]]:
    """Hierarchies that may limit memory: version, where it is mounted, and the folder of a process's group in it."""
    try:
        own = _own_paths(_text(os.path.join(proc, "cgroup")))
        mounts = _text(os.path.join(proc, "mountinfo")).splitlines()
    except (OSError, ValueError):
        return
    seen = set()
    for line in mounts:
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kind[0])
        if version is None or (version == 1 and "memory" not in kind[2].split(",")):
            continue
        path = own.get("memory" if version == 1 else "")
        if path is None or version in seen:
            continue
        seen.add(version)
        root, mount = _unescaped(fields[3]), _unescaped(fields[4])
        yield version, mount, _under(mount, root, path)


def _own_paths(text: str) -> dict[str, str]:
    """Controller -> path of this process; that of version 2 has no name."""
    out = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller or number == "0":
                out[controller] = path
    return out


def _under(mount: str, root: str, path: str) -> str:
    """The folder of a group, where the hierarchy is mounted from ``root`` on; the mount itself if it is not below."""
    inside = path if root == "/" else path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else "/"
    parts = [part for part in inside.split("/") if part]
    return mount if ".." in parts else os.path.join(mount, *parts)


def _read_v1(folder: str) -> Group | None:
    limit = int(_text(os.path.join(folder, "memory.limit_in_bytes")))
    if limit >= _UNLIMITED:
        return None
    numbers = _numbers(_text(os.path.join(folder, "memory.stat")))
    nested = _text(os.path.join(folder, "memory.use_hierarchy")).strip() == "1"
    names = ("inactive_file", "active_file", "mapped_file", "shmem", "dirty", "writeback")
    stat = {name: numbers.get(f"total_{name}" if nested else name, 0) for name in names}
    return Group(folder, limit, int(_text(os.path.join(folder, "memory.usage_in_bytes"))), _droppable(stat))


def _read_v2(folder: str) -> Group | None:
    limits = []
    for name in ("memory.max", "memory.high"):  # above memory.high processes are put to sleep: nobody wants to be there
        with suppress(FileNotFoundError):
            text = _text(os.path.join(folder, name)).strip()
            if text != "max":
                limits.append(int(text))
    if not limits:
        return None
    stat = _numbers(_text(os.path.join(folder, "memory.stat")))
    stat |= {"mapped_file": stat.get("file_mapped", 0), "dirty": stat.get("file_dirty", 0)}
    stat["writeback"] = stat.get("file_writeback", 0)
    used = int(_text(os.path.join(folder, "memory.current")))
    return Group(folder, min(limits), used, _droppable(stat) + stat.get("slab_reclaimable", 0))


def _droppable(stat: Mapping[str, int]) -> int:
    """Bytes of pages of files that no process has mapped and that the disk has already.

    Shared memory and files in memory are charged as files too, but the lists of pages of files leave them out. What is
    mapped is the code that runs: it could be dropped, but would be read again and again. Some of it may be shared
    memory, which is in neither list and is not to be taken off.
    """
    files = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    mapped = max(0, stat.get("mapped_file", 0) - stat.get("shmem", 0))
    return max(0, files - mapped - stat.get("dirty", 0) - stat.get("writeback", 0))


def _numbers(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_MOST if not path.endswith("mountinfo") else -1)


def _unescaped(text: str) -> str:
    """A path of mountinfo: what would end a field is there as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
