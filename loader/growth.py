"""A model that grows in the background, step by step, while it is used."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from bsformat import Plan
from bsformat.errors import BstkError, ResizeError

from .resident import Resident

_LOG: Final = logging.getLogger(__name__)
#: A step is made when it brings this share of what is resident, or after so many seconds.
STEP_SHARE: Final = 1 / 16
STEP_SECONDS: Final = 1.0


class Growth:
    """The way of a model to a larger plan, in a thread of its own.

    Every step makes some more blocks part of the model, all of them in one moment between two forward passes. If the
    stream fails, the model stays at what it has and can be used and resized as ever; the error is kept here, and
    logged. A later resize or growth takes its place; the end of the main thread ends it too.

    Attributes:
        target: what it grows to.
        started: what was resident when it began.

    Args:
        resident: what is to grow. Its turn is taken now, the thread started too.
        target: what to grow to.
        progress: called with the number of bytes that were read and checked since the last call.
        watch: called with what is resident after each step, the last one included. Both are called by that thread;
            what they raise ends the growth.
        may_wait: raises where waiting would never end, because the growth waits for the calling thread.
    """

    def __init__(
        self,
        resident: Resident,
        target: Plan,
        progress: Callable[[int], object] = lambda n: None,
        watch: Callable[[Plan], object] = lambda plan: None,
        may_wait: Callable[[], object] = lambda: None,
    ) -> None:
        self.target, self.started = target, resident.plan
        self._resident, self._progress, self._watch = resident, progress, watch
        self._may_wait = may_wait
        self._over = threading.Event()
        self._error: BstkError | None = None
        self._last_step = time.monotonic()
        self._turn = resident.turn()
        self._turn.ended, self._turn.needless = self._end, program_ends
        # No daemon: those are stopped in the middle of what they do, which torch does not survive.
        threading.Thread(target=self._run, name="bstk-growth").start()

    @property
    def plan(self) -> Plan:
        """What is resident now."""
        return self._resident.plan

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._over.is_set()

    @property
    def error(self) -> BstkError | None:
        """Why it ended before its target: what went wrong with the stream, or `ResizeError` if it was called off."""
        return self._error

    def wait(self, timeout: float | None = None) -> Plan:
        """Wait for its end.

        Returns:
            What is resident then: the target.

        Raises:
            SourceError, FormatError: the stream failed.
            ResizeError: it was called off, or ended otherwise; or this was called within a forward pass, or while
                ``frozen()`` holds the blocks.
            TimeoutError: it goes on after ``timeout`` seconds.
        """
        if not self.done:
            self._may_wait()
        if not self._over.wait(timeout):
            now = self.plan
            raise TimeoutError(f"still growing after {timeout} s: {now.n_blocks} of {self.target.n_blocks} blocks")
        if self._error is not None:
            raise self._error
        return self.target

    def cancel(self) -> Plan:
        """End it now. What is in the model stays there; what was on its way is dropped.

        Returns:
            What is resident, from now until the next resize.
        """
        self._turn.call_off()
        return self.plan

    def _run(self) -> None:
        try:
            self._turn.move_to(self.target, self._progress, step=self._due, stepped=self._watch)
            self._watch(self.plan)
        except BstkError as error:
            self._end(error)
        except BaseException as error:
            if not program_ends():
                self._end(self._unexpected(error))
        finally:
            self._over.set()

    def _due(self, staged: int, resident: int) -> bool:
        now = time.monotonic()
        due = staged >= STEP_SHARE * resident or now >= self._last_step + STEP_SECONDS
        if due:
            self._last_step = now
        return due

    def _end(self, error: BstkError) -> None:
        if self._over.is_set():
            return
        # The frames behind it hold bytes of the stream.
        self._error = error.with_traceback(None)
        self._over.set()
        if not isinstance(error, ResizeError) or error.reason == "resize-failed":
            now = self.plan
            _LOG.warning("%s; the model stays at %d of %d blocks", error, now.n_blocks, self.target.n_blocks)

    def _unexpected(self, error: BaseException) -> BstkError:
        detail = " ".join(str(error).split())[:300]
        full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        what = f"out of memory{f' ({detail})' if detail else ''}" if full else f"{type(error).__name__}: {detail}"
        failed = ResizeError(
            f"growing ended before its target: {what}", where=self._resident.container.uri, reason="resize-failed"
        )
        failed.__cause__ = error.with_traceback(None)
        return failed


def program_ends() -> bool:
    """Whether the main thread is through, so that the program waits for its other threads only."""
    return bool(getattr(threading, "_SHUTTING_DOWN", False)) or not threading.main_thread().is_alive()
