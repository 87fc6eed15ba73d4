"""Which prefix of a file is resident, and changing it."""

from collections.abc import Callable
from typing import Protocol

from bsformat import Block, Container, Plan

from .memory import release_pages
from .stream import stream_blocks


class BlockSink(Protocol):
    """What takes blocks: a model, or anything else that wants them in the order of the file."""

    def put(self, block: Block, payload: bytes | memoryview) -> None:
        """Take the next block of a chain; the payload is copied, not kept."""
        ...

    def drop(self, block: Block) -> None:
        """Give up the last resident block of a chain, and its memory."""
        ...


class Resident:
    """The prefix of a container that a sink holds.

    Attributes:
        plan: the prefix that is resident now.
    """

    def __init__(self, container: Container, sink: BlockSink) -> None:
        self.container = container
        self._sink = sink
        self.plan = container.planner.prefix(0)

    def move_to(self, plan: Plan, progress: Callable[[int], object] = lambda n: None) -> None:
        """Grow or shrink to ``plan``.

        Growing reads exactly the bytes between the two prefixes; if it fails, what was added is dropped again.
        Shrinking reads nothing, drops the last blocks, and gives their memory back to the system.

        Args:
            progress: called with the number of resident bytes added or dropped since the last call; not called for
                what is dropped because growing failed.

        Raises:
            SourceError, FormatError: the bytes could not be read, or are damaged.
        """
        start = self.plan.n_blocks
        if plan.n_blocks < start:
            freed = self.plan.resident_bytes - plan.resident_bytes
            self._drop(plan.n_blocks, start)
            self.plan = plan
            progress(freed)
            return
        added = start
        try:
            for block, payload in stream_blocks(self.container, start, plan.n_blocks):
                self._sink.put(block, payload)
                # It is a view of a whole request, which would stay in memory while the next one is waited for.
                del payload
                added += 1
                progress(block.length)
        except BaseException:
            self._drop(max(start, self.container.index.required), added)
            raise
        self.plan = plan

    def _drop(self, stop: int, start: int) -> None:
        for number in range(start - 1, stop - 1, -1):
            self._sink.drop(self.container.block(number))
        release_pages()
