"""Which prefix of a file is resident, and changing it: one change at a time, of which the last one asked for wins."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from bsformat import Block, Container, Plan
from bsformat.errors import ResizeError

from .memory import release_pages
from .stream import stream_blocks


class Change(Protocol):
    """Blocks that come or go together; until `commit` nobody sees any of it, but for those that every prefix has."""

    def put(self, block: Block, payload: bytes | memoryview) -> None:
        """Take the next block of a chain; the payload is copied, not kept."""
        ...

    def drop(self, block: Block) -> None:
        """Give up the last resident block of a chain."""
        ...

    def settle(self) -> None:
        """Wait until all that was taken is where it belongs; called by the thread that gave it, before `commit`."""
        ...

    def commit(self) -> None:
        """Make it so, all of it or, with an error, nothing; called within `BlockSink.exclusive`."""
        ...

    def forget(self) -> None:
        """Free what was prepared, or after `commit` what was given up."""
        ...


class BlockSink(Protocol):
    """What takes blocks: a model, or anything else that wants them in the order of the file."""

    def change(self) -> Change:
        """An empty change."""
        ...

    def exclusive(self, wanted: Callable[[], bool]) -> AbstractContextManager[bool]:
        """Within it nobody uses the blocks. Gives False, and is not so, once it is not ``wanted`` any more."""
        ...

    def release(self) -> None:
        """Give memory that was freed back to whom it came from."""
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
        self._lock = threading.Lock()
        self._turn: Turn | None = None

    def turn(self) -> "Turn":
        """Take the right to change what is resident: from now until somebody else takes it.

        A change that is under way is called off at once: it ends with `ResizeError`, what it has prepared is freed, and
        what it has already made part of the model stays.
        """
        turn = Turn(self)
        with self._lock:
            former, self._turn = self._turn, turn
            if former is not None:
                former._end(
                    ResizeError("another resize came later and took the place of this one", reason="resize-superseded")
                )
        return turn

    def move_to(self, plan: Plan, progress: Callable[[int], object] = lambda n: None) -> None:
        """Grow or shrink to ``plan``, in a turn of its own; see `Turn.move_to`."""
        self.turn().move_to(plan, progress)


class Turn:
    """The right to change what is resident, from `Resident.turn`; for one call.

    Attributes:
        ended: called with the error when it is called off, by whoever does that.
        needless: asked while something is waited for: whether nobody will see the result.
    """

    def __init__(self, resident: Resident) -> None:
        self._resident = resident
        self._sink = resident._sink
        self._change = resident._sink.change()
        self._called_off: ResizeError | None = None
        self.ended: Callable[[ResizeError], object] = lambda error: None
        self.needless: Callable[[], bool] = lambda: False

    @property
    def live(self) -> bool:
        """Whether it is still this one that counts."""
        return self._called_off is None

    def call_off(self) -> None:
        """End it from another thread: nothing changes any more once this returns, and what was prepared is freed."""
        with self._resident._lock:
            if self._resident._turn is self:
                self._end(ResizeError("the resize was called off", reason="resize-cancelled"))

    def move_to(
        self,
        plan: Plan,
        progress: Callable[[int], object] = lambda n: None,
        *,
        step: Callable[[int, int], bool] = lambda staged, resident: False,
        stepped: Callable[[Plan], object] = lambda plan: None,
    ) -> None:
        """Grow or shrink to ``plan``.

        Growing reads exactly the bytes between the two prefixes, checks them, and makes them part of the model at the
        end, all of them in one moment; if anything fails before, nothing has changed. With ``step`` it does so in
        several moments, and if it fails the model stays at what the last of them made. Shrinking reads nothing, gives
        up the last blocks in one moment, and gives their memory back to the system.

        Args:
            progress: called with the number of bytes that were prepared, or given up, since the last call.
            step: called after each block with the bytes that are prepared and those that are resident; says whether
                to make the former part of the model now.
            stepped: called after each such step with what is resident then; not at the end.

        Raises:
            SourceError, FormatError: the bytes could not be read, or are damaged.
            ResizeError: it was called off, by a later turn or otherwise.
        """
        grown = False
        try:
            if plan.n_blocks < self._resident.plan.n_blocks:
                self._shrink(plan, progress)
            else:
                self._grow(plan, progress, step, stepped)
                grown = True
        finally:
            try:
                self._change.settle()
            finally:
                with self._resident._lock:
                    self._change.forget()
                    if self._resident._turn is self:
                        self._resident._turn = None
                if not grown:
                    self._sink.release()
                release_pages()

    def _shrink(self, plan: Plan, progress: Callable[[int], object]) -> None:
        resident = self._resident
        with resident._lock:
            self._check()
            for number in range(resident.plan.n_blocks - 1, plan.n_blocks - 1, -1):
                self._change.drop(resident.container.block(number))
        freed = resident.plan.resident_bytes - plan.resident_bytes
        self._commit(plan)
        progress(freed)

    def _grow(
        self,
        plan: Plan,
        progress: Callable[[int], object],
        step: Callable[[int, int], bool],
        stepped: Callable[[Plan], object],
    ) -> None:
        resident, staged = self._resident, 0
        start, stop = resident.plan.n_blocks, plan.n_blocks
        for block, payload in stream_blocks(resident.container, start, stop, watch=self._look):
            with resident._lock:
                self._check()
                self._change.put(block, payload)
            # It is a view of a whole request, which would stay in memory while the next one is waited for.
            del payload
            staged += block.length
            progress(block.length)
            if block.number + 1 < plan.n_blocks and step(staged, resident.plan.resident_bytes):
                self._commit(resident.container.planner.prefix(block.number + 1))
                staged = 0
                stepped(resident.plan)
        self._commit(plan)

    def _commit(self, plan: Plan) -> None:
        self._change.settle()
        # The sink first, then the lock: whoever waits for the sink must not keep a later turn from calling it off.
        with self._sink.exclusive(self._wanted) as granted, self._resident._lock:
            self._check()
            if not granted:
                raise self._given_up()
            self._change.commit()
            self._resident.plan = plan
        # What was given up is freed when passes run again.
        self._change.forget()

    def _wanted(self) -> bool:
        return self.live and not self.needless()

    def _look(self, reading: object) -> None:
        """While the network is waited for."""
        if not self._wanted():
            self._check()
            raise self._given_up()

    def _given_up(self) -> ResizeError:
        return ResizeError("the program ends", where=self._resident.container.uri, reason="resize-cancelled")

    def _check(self) -> None:
        if self._called_off is not None:
            raise self._called_off

    def _end(self, error: ResizeError) -> None:
        """With the lock held."""
        if self._called_off is None:
            error.at(self._resident.container.uri)
            self._called_off = error
            self._change.forget()
            self.ended(error)
