"""What runs a `Governor`: reads the free memory, asks, and resizes; tick by tick, or in a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from .governor import Decision, Governor
from .governor_log import NAME, EventLog

_logger = logging.getLogger(NAME)


class Resizable(Protocol):
    """What can be governed: ``model.bitstack`` is."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights that are in memory."""
        ...

    def resize(self, budget: int) -> object:
        """Grow or shrink to a budget in bytes; raises where that fails, and then leaves what was there."""
        ...


class Driver:
    """Keeps a model within what is free.

        with Driver(governor, model.bitstack, lambda: free_bytes(device)):
            ...                                    # generate; another thread resizes

    A program with a loop of its own calls `tick` in it instead. The model must bear being resized by the thread that
    ticks. While a growth reads, nothing else is decided: the step of the marks bounds for how long.

    Args:
        governor: the policy. It belongs to the driver from now on.
        model: what is resized.
        free: bytes that are free on the device; None, or an error, where that cannot be told.
        interval: seconds from the end of a tick to the next one.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        governor: Governor,
        model: Resizable,
        free: Callable[[], int | None],
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.governor = governor
        self._model, self._free, self._clock = model, free, clock
        self._interval = interval
        self._log = EventLog()
        self._ticking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._log.start(clock(), governor.marks, governor.budget)

    def tick(self) -> Decision:
        """Read, decide, and do what was decided. An error of the resize is logged and does not come out of here."""
        with self._ticking:
            decision = self.governor.decide(self._clock(), self._free_now(), self._model.resident_bytes)
            self._log.decision(decision)
            if decision.action != "hold":
                self._carry_out(decision)
            return decision

    def limit(self, budget: int) -> None:
        """Resize to a budget now, in the place of whatever is under way, and let it be the ceiling from then on.

        Raises:
            BudgetError: it is below the floor. Other errors: those of the resize; then the ceiling is what it was.
        """
        replace(self.governor.marks, ceiling=budget)  # refused before anything is called off
        self._model.resize(budget)
        with self._ticking:
            self._model.resize(budget)  # a tick that had decided before may have come in between
            self.governor.marks = replace(self.governor.marks, ceiling=budget)
            self.governor.budget = budget
            self._log.start(self._clock(), self.governor.marks, budget)

    def _free_now(self) -> int | None:
        try:
            return self._free()
        except Exception:  # a device that is gone, a file that cannot be read: not known, which is logged
            return None

    def _carry_out(self, decision: Decision) -> None:
        started = self._clock()
        try:
            self._model.resize(decision.target)
        except Exception as error:  # of whatever kind: the model has what it had, and the governor waits
            ended = self._clock()
            self.governor.failed(ended, decision)
            self._log.failed(ended, ended - started, decision, error, self.governor.blocked_until)
        else:
            ended = self._clock()
            self.governor.resized(ended, decision)
            self._log.resized(ended, ended - started, decision, self._model.resident_bytes)

    def start(self) -> "Driver":
        """Tick in a thread until `stop`; once started, a further start does nothing."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="bstk-governor", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; waits for a resize that is under way."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            thread.join()

    def __enter__(self) -> "Driver":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while True:
            try:
                self.tick()
            except Exception:  # what `tick` lets out says nothing about the next one
                _logger.exception("governor: a tick failed")
            if self._stop.wait(self._interval):
                return
