"""Memory for what is read: reused, and never more than a bound."""

import mmap
from typing import Final

from .errors import SourceError
from .units import format_size

#: What is mapped is a multiple of this.
_GRAIN: Final = 1 << 16


def new_bytes(length: int, where: str, offset: int, kind: type[bytearray] = bytearray) -> bytearray:
    """Memory for ``length`` bytes from ``offset`` of an object, which may be as long as a hostile file says.

    Raises:
        SourceError: there is not so much.
    """
    try:
        return kind(length)
    except (MemoryError, OverflowError):
        raise too_large(length, where, offset) from None


def too_large(length: int, where: str, offset: int) -> SourceError:
    """The error of a range that there is no memory for."""
    return SourceError(
        f"{length} bytes ({format_size(length)}) are to be read at once, which is more memory than the system gives: "
        "name a smaller budget, if it is a block, or read it on a larger machine",
        where=where,
        offset=offset,
    )


class Lease:
    """Some of the bytes of a `Buffers`.

    Attributes:
        view: of the length that was asked for, or None where only the count matters.
        cost: bytes that it counts for.
    """

    __slots__ = ("_memory", "cost", "view")

    def __init__(self, memory: mmap.mmap | None, length: int, cost: int) -> None:
        self._memory, self.cost = memory, cost
        self.view = None if memory is None else memoryview(memory)[:length]


class Buffers:
    """Hands out buffers of at most ``bound`` bytes in all, those that are kept for reuse included. Not for threads.

    They are mapped, not taken from the heap: where they end, the system has them back, and what is written to again
    and again costs no new pages.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.used = self.most_used = 0
        self._idle: list[mmap.mmap] = []

    def take(self, length: int, extra: int, usual: int, *, mapped: bool, later: int = 0) -> Lease | None:
        """A buffer, or None while there is no room for it. When nothing else is taken there is always room.

        Args:
            extra: bytes that come to be held beside it.
            usual: a length that will be asked for often.
            mapped: whether there is to be memory, or `MemoryError`; else the bytes are only counted.
            later: a length that will be asked for if all goes well. A buffer that long is taken at once where half of
                the bound has room: what is not written to is no memory yet, and what was need not be made again.
        """
        memory = self._fitting(length, later) if mapped else None
        size = len(memory) if memory is not None else length
        if memory is None and mapped:
            # For the next one too, which may be a little longer.
            if self.used + later + extra > self.bound // 2:
                later = 0
            size = -(-max(length, later, usual if 2 * length > usual else 0) // _GRAIN) * _GRAIN
            if self.used + size + extra > self.bound:
                size = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        cost = size + extra
        if self.used and self.used + cost > self.bound:
            if memory is not None:
                self._idle.append(memory)
            return None
        while self._idle and self.used + cost + sum(map(len, self._idle)) > self.bound:
            self._idle.pop(0)
        if memory is None and mapped:
            memory = _mapped(max(size, 1))
        self.used += cost
        self.most_used = max(self.most_used, self.used)
        return Lease(memory, length, cost)

    def give(self, lease: Lease) -> None:
        """Take back a buffer; nobody may use it any more. One that somebody looks at still is theirs from then on."""
        self.used -= lease.cost
        memory, view, lease._memory, lease.view = lease._memory, lease.view, None, None
        if view is not None:
            view.release()
        if memory is not None and _is_free(memory):
            self._idle.append(memory)
            while self._idle and self.used + sum(map(len, self._idle)) > self.bound:
                self._idle.pop(0)

    def _fitting(self, length: int, later: int) -> mmap.mmap | None:
        best = None
        for i in reversed(range(len(self._idle))):  # what was used last may still be in the processor's caches
            memory = self._idle[i]
            if length <= len(memory) <= max(2 * length, later) + _GRAIN and (
                best is None or len(memory) < len(self._idle[best])
            ):
                best = i
        return None if best is None else self._idle.pop(best)


def _mapped(size: int) -> mmap.mmap:
    """Memory of this process alone: pages that it could share take the system longer.

    Raises:
        MemoryError: there is not so much.
    """
    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return mmap.mmap(-1, size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError):
        raise MemoryError(f"{size} bytes") from None


def _is_free(memory: mmap.mmap) -> bool:
    """Whether there is no view of some memory: only then Python lets it be resized."""
    try:
        memory.resize(len(memory))
    except BufferError:
        return False
    except (SystemError, OSError, ValueError):  # a system that resizes nothing: it got as far as trying
        return True
    return True
