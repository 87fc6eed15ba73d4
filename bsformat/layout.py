"""Where the blocks of a file lie, and how runs of them are cut into ranges to read."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from .block import Span
from .index import Index
from .metadata import Form


class Layout:
    """Offsets and sizes of the blocks of a file.

    Args:
        starts: the blocks with which another object begins; none where all blocks lie in one.
    """

    def __init__(self, index: Index, forms: tuple[Form, ...], starts: Sequence[int] = ()) -> None:
        self._offset = index.offset
        #: The first block of each volume after the first: no range reaches over it.
        self._starts = np.array(starts, np.int64)
        #: Of each block, where its stored bytes end: int64, bytes of the file.
        self.ends = index.offset.astype(np.int64) + index.stored.astype(np.int64)
        packed = np.array([form.codec != "none" for form in forms], dtype=bool)
        #: The same and the decoded bytes of all compressed blocks so far.
        self._costs = self.ends + np.cumsum(np.where(packed[index.form], index.length, 0), dtype=np.int64)

    def spans(self, first: int, stop: int, max_bytes: int) -> Iterator[Span]:
        """Cut blocks [first, stop) into runs of at most ``max_bytes`` bytes of the file, or one larger block.

        The spans tile one range: each reaches to where the next begins, the last one to the end of its last block.
        """
        while first < stop:
            span, _ = self.span(first, stop, max_bytes)
            yield span
            first = span.stop

    def span(self, first: int, stop: int, max_bytes: int, max_memory: int | None = None) -> tuple[Span, int]:
        """The first of `spans`, and the bytes that its compressed blocks take when decoded.

        Args:
            max_memory: bytes that it may take together with those; None: any number. One block is in it in any case.
        """
        offset = int(self._offset[first])
        # numpy would let go of the interpreter for this: who holds a lock then lets others wait for both.
        last = bisect_right(self.ends, offset + max_bytes, hi=stop)
        before = int(self._costs[first - 1] - self.ends[first - 1]) if first else 0
        if max_memory is not None:
            last = min(last, bisect_right(self._costs, offset + before + max_memory, hi=stop))
        last = max(last, first + 1)
        if len(self._starts):
            following = int(np.searchsorted(self._starts, first, side="right"))
            last = min(last, int(self._starts[following])) if following < len(self._starts) else last
        end = int(self._offset[last]) if last < stop else int(self.ends[last - 1])
        decoded = int(self._costs[last - 1] - self.ends[last - 1]) - before
        return Span(first, last, offset, end - offset), decoded

    def extent(self, first: int, stop: int) -> int:
        """Bytes of the range of blocks [first, stop), of which there is at least one."""
        return int(self.ends[stop - 1]) - int(self._offset[first])
