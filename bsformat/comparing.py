"""Comparing blocks with their digests while they come, so that their bytes are in the processor's caches still."""

from collections.abc import Sequence
from typing import Final

from blake3 import blake3

#: Bytes that are hashed at a time of a block that is not whole yet: a multiple of `_GRAIN`, at least.
_LEAST: Final = 1 << 18
#: Pieces of this length, from the beginning of a block, are whole subtrees of its hash: nothing is held over.
_GRAIN: Final = 1 << 16


class Comparing:
    """The blocks in one run of bytes, of which the first bytes are there, then more, then all.

    Args:
        out: where the bytes come to be.
        bounds: [first, stop) of each block in ``out``, in order. digests: BLAKE3 of each.
    """

    def __init__(self, out: memoryview, bounds: Sequence[tuple[int, int]], digests: Sequence[bytes]) -> None:
        self._out, self._bounds, self._digests = out, bounds, digests
        self._next = 0  # the first block that was not compared
        self._hasher: blake3 | None = None  # of the bytes of that block before ``_at``, if there are any
        self._at = 0
        self._sound = True

    @property
    def sound(self) -> bool:
        """Whether every block was compared, and is what it should be."""
        return self._sound and self._next == len(self._bounds)

    def there(self, count: int) -> None:
        """So many leading bytes are in place; fewer than before, if what came after them is not trusted any more."""
        if count < self._at:
            self._sound = False  # what replaces them has to be compared as a whole, by whoever asks whether it is sound
        while self._sound and self._next < len(self._bounds):
            first, stop = self._bounds[self._next]
            at = self._at if self._hasher is not None else first
            if count < stop:
                whole = first + max(0, count - first) // _GRAIN * _GRAIN
                if whole - at >= _LEAST:
                    self._hasher = self._hasher or blake3()
                    self._hasher.update(self._out[at:whole])
                    self._at = whole
                return
            hasher, self._hasher = self._hasher or blake3(), None
            self._sound = hasher.update(self._out[at:stop]).digest() == self._digests[self._next]
            self._at = stop
            self._next += 1
