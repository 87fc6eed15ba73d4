"""Filling a work file with a prefix: from what is on this machine, and then from the remote file."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Final

import blake3

from . import registry
from .block import Span
from .container import Container
from .errors import IntegrityError
from .flow import Flow
from .source import Buffer
from .superblock import SIZE
from .work_file import WorkFile

#: Bytes of one request, unless a single block is larger; None: as the link likes it.
REQUEST_BYTES: int | None = None
#: Bytes that are read at a time from a file of this machine.
LOCAL_BYTES: Final = 4 << 20

#: Called with the bytes of the prefix that are there, and those that it has.
Progress = Callable[[int, int], object]


class Filler:
    """Fills a work file with the first ``n_blocks`` blocks and what stands before them.

    Args:
        have: how many leading blocks ``old`` holds.

    Attributes:
        bytes_local: bytes that were in the work file or in the old output.
    """

    def __init__(
        self, container: Container, work: WorkFile, old: Container | None, have: int, n_blocks: int, progress: Progress
    ) -> None:
        self._container, self._work, self._old, self._have, self._n = container, work, old, have, n_blocks
        self._progress = progress
        self._done = self._total = self.bytes_local = 0

    def fill(self, total: int) -> None:
        """Get what is missing: from the old output, then from the remote file.

        Args:
            total: bytes of the prefix.
        """
        self._total = total
        fresh = self._work.head() is None
        if fresh:
            # While it is filled, it says of itself that it is whole: under a wrong name it is seen to be cut off.
            self._work.write(SIZE, self._container.stored_head[SIZE:])
            whole = self._container.superblock
            self._work.write(0, whole.holding(whole.file_length).encode())
        self._advance(self._container.superblock.head_length)
        self._fill_attachments()
        missing = list(range(self._n))
        if not fresh:
            missing = self._keep(missing, self._work.read, copy=False)
        if self._old:
            there = [i for i in missing if i < self._have]
            lost = self._keep(there, self._old.read, copy=True)
            missing = sorted(set(missing) - set(there) | set(lost))
        self._download(list(_runs(missing)))

    def _spans(self, first: int, stop: int) -> Iterator[Span]:
        return self._container.spans(first, stop, LOCAL_BYTES)

    def _advance(self, length: int) -> None:
        self._done += length
        self._progress(self._done, self._total)

    def _fill_attachments(self) -> None:
        s = self._container.superblock
        start, length = s.head_length, s.blocks_offset - s.head_length
        if length and not self._sound(self._work.read(start, length)):
            data: Buffer = self._old.read(start, length) if self._old else b""
            if not self._sound(data):
                data = self._container.read(start, length)
            if not self._sound(data):
                raise IntegrityError(
                    "the attachments do not match their digests, or are not padded with zeros; fetch them again",
                    where=self._container.uri,
                    offset=start,
                    reason="attachment-digest",
                )
            self._work.write(start, data)
        self._advance(length)

    def _sound(self, data: Buffer) -> bool:
        """Whether bytes are what stands between head and blocks."""
        s, view = self._container.superblock, memoryview(data)
        files = [a for a in self._container.metadata.attachments if a.data is None]
        return (
            len(view) == s.blocks_offset - s.head_length
            and not any(view[s.attachments_length :])
            and all(blake3.blake3(view[a.offset : a.offset + a.stored]).digest() == a.digest for a in files)
        )

    def _keep(self, numbers: list[int], read: Callable[[int, int], Buffer], *, copy: bool) -> list[int]:
        """Compare blocks that are on this machine with their digests; gives the numbers of those that are not sound.

        Args:
            copy: write the sound ones into the work file.
        """
        lost = []
        for first, stop in _runs(numbers):
            for span in self._spans(first, stop):
                view = memoryview(read(span.offset, span.length))
                for number in range(span.first, span.stop):
                    block = self._container.block(number)
                    at = block.offset - span.offset
                    data = view[at : at + block.stored]
                    if len(data) != block.stored or blake3.blake3(data).digest() != block.digest:
                        lost.append(number)
                        continue
                    if copy:
                        self._work.write(block.offset, data)
                    elif any(padding := view[at + block.stored : at + registry.align(block.stored)]):
                        self._work.write(block.offset + block.stored, bytes(len(padding)))
                    self.bytes_local += block.stored
                    self._advance(block.stored)
        return lost

    def _download(self, runs: list[tuple[int, int]]) -> None:
        flow = Flow(self._container, runs, memory=self._container.memory, request_bytes=REQUEST_BYTES, ordered=False)
        with closing(iter(flow)) as parts:
            for part in parts:
                self._work.write(part.span.offset, part.data)
                self._advance(part.span.length)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as ranges [first, stop)."""
    for _, group in groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0]):
        members = [number for _, number in group]
        yield members[0], members[-1] + 1
