"""A control group of our own, with a limit of memory, and a process in it that takes memory and gives it back."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from bitstack.loader.cgroup import PROC, places

#: Holds as many MiB as the last line of stdin says, all of them written to; answers every line.
_HOG = """
import sys
held = []
for line in sys.stdin:
    wanted = int(line)
    del held[wanted:]
    while len(held) < wanted:
        held.append(bytearray(b"x") * (1 << 20))
    print(len(held), flush=True)
"""


class NoGroupError(Exception):
    """This process may not make control groups that limit memory; the text says why."""


class LimitedGroup:
    """A control group below our own.

    Attributes:
        version: of the hierarchy, 1 or 2. folder: where it is.
    """

    def __init__(self, version: int, folder: str) -> None:
        self.version, self.folder = version, folder

    def limit(self, size: int) -> None:
        """Set how many bytes its processes may hold together; there is no swap beyond them."""
        self._write("memory.limit_in_bytes" if self.version == 1 else "memory.max", size)
        with suppress(OSError):
            if self.version == 2:
                self._write("memory.swap.max", 0)
            else:
                self._write("memory.memsw.limit_in_bytes", size)

    @property
    def used(self) -> int:
        """Bytes that its processes hold together."""
        return int(self._read("memory.usage_in_bytes" if self.version == 1 else "memory.current"))

    @property
    def killed(self) -> int:
        """How many of its processes were killed because there was no memory for them."""
        text = self._read("memory.oom_control" if self.version == 1 else "memory.events")
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def start(self, command: Sequence[str], stdin: int | IO[str] | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start a process in it, with pipes for its output."""
        # The shell enters the group, and then becomes the command.
        enter = f'echo $$ > "{os.path.join(self.folder, "cgroup.procs")}" && exec "$@"'
        return subprocess.Popen(
            ["/bin/sh", "-c", enter, "sh", *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _read(self, name: str) -> str:
        with open(os.path.join(self.folder, name), encoding="ascii") as file:
            return file.read()

    def _write(self, name: str, value: object) -> None:
        with open(os.path.join(self.folder, name), "w", encoding="ascii") as file:
            file.write(f"{value}\n")


@contextmanager
def limited_group(size: int) -> Iterator[LimitedGroup]:
    """A group whose processes may hold so many bytes; it is removed at the end, when its processes must be gone.

    Raises:
        NoGroupError: this process may not make one.
    """
    group = _made(size)
    try:
        yield group
    finally:
        for _ in range(100):  # the kernel takes a moment to forget a process that has ended
            with suppress(OSError):
                os.rmdir(group.folder)
                break
            time.sleep(0.05)


def _made(size: int) -> LimitedGroup:
    why = "no hierarchy of control groups limits memory here"
    for version, _, own in places(PROC):
        group = LimitedGroup(version, os.path.join(own, f"bstk-{os.getpid()}"))
        try:
            if version == 2:
                with open(os.path.join(own, "cgroup.subtree_control"), "w", encoding="ascii") as file:
                    file.write("+memory")
            os.mkdir(group.folder)
        except OSError as error:
            why = f"{own}: {error.strerror}"
            continue
        try:
            group.limit(size)
        except OSError as error:
            os.rmdir(group.folder)
            why = f"{own}: {error.strerror}"
            continue
        return group
    raise NoGroupError(why)


class Hog:
    """A process that holds memory; use it in a ``with`` statement."""

    def __init__(self, group: LimitedGroup) -> None:
        self._process = group.start([sys.executable, "-S", "-E", "-c", _HOG], stdin=subprocess.PIPE)

    def hold(self, mebibytes: int) -> bool:
        """Hold so much; False if it was killed for that."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        with suppress(BrokenPipeError):
            stdin.write(f"{mebibytes}\n")
            stdin.flush()
        return stdout.readline() != ""

    def __enter__(self) -> "Hog":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
