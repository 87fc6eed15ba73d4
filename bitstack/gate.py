"""Forward passes and changes of the blocks of a model: any number of passes at once, or one change, never both.

A pass is one call of the model, or of one of the models that it is made of; it sees one set of blocks from beginning to
end. A change waits for the passes that run, and holds back those that come meanwhile; when it is through, all of these
go in before the next change can. So a pass waits for one change at most, and a change for the passes of one moment.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any, Final

import torch
from torch import nn

from bsformat.errors import ResizeError

#: A waiting change holds new passes back during the first MAKE_WAY of every CYCLE seconds that it waits. Passes that
#: take longer than that are rare (a long prompt), or are held up by a pass that is held back: then those are let in.
MAKE_WAY: Final = 1.0
CYCLE: Final = 5.0
#: Seconds after which whoever waits looks again, although nobody called.
_LOOK: Final = 0.1


class Gate:
    """Lets passes in side by side, and changes alone. Threads that are within a pass may enter again.

    Passes are known by their threads, so that one which an interrupt ended in the wrong moment is not waited for for
    ever: its thread's next pass takes its place.
    """

    def __init__(self) -> None:
        self._moved = threading.Condition(threading.Lock())
        self._inside: set[int] = set()
        self._held_back: set[int] = set()
        self._changer: int | None = None  # the thread that makes a change
        self._waiting = 0
        self._since = 0.0
        self._own = threading.local()

    @property
    def within(self) -> bool:
        """Whether the calling thread is within a pass."""
        return bool(getattr(self._own, "within", False))

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Within it, no block changes; waits for a change that is being made."""
        if self.within:
            yield
            return
        thread = threading.get_ident()
        try:
            self._enter(thread)
            self._own.within = True
            yield
        finally:
            self._own.within = False
            with self._moved:
                self._inside.discard(thread)
                if not self._inside:
                    self._moved.notify_all()

    def _enter(self, thread: int) -> None:
        with self._moved:
            if self._changer or self._makes_way():
                self._held_back.add(thread)
                try:
                    while thread in self._held_back and (self._changer or self._makes_way()):
                        self._moved.wait(_LOOK)
                finally:
                    self._held_back.discard(thread)
            self._inside.add(thread)

    def _makes_way(self) -> bool:
        return self._waiting > 0 and (time.monotonic() - self._since) % CYCLE < MAKE_WAY

    def refuse_within(self) -> None:
        """Refuse a change that the calling thread could only wait for in vain.

        Raises:
            ResizeError: reason ``resize-within-pass``.
        """
        if self.within:
            raise ResizeError(
                "within a forward pass of a model, or while frozen() holds its blocks, their thread can neither resize "
                "it nor wait for it to grow: do so between two passes, or in another thread",
                reason="resize-within-pass",
            )

    @contextmanager
    def changing(self, wanted: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """Within it, no pass runs. Gives whether that is so: False once the change is not ``wanted`` any more.

        Raises:
            ResizeError: reason ``resize-within-pass``.
        """
        self.refuse_within()
        thread = threading.get_ident()
        try:
            yield self._acquire(thread, wanted)
        finally:
            with self._moved:
                if self._changer == thread:
                    self._changer = None
                    # Those that were held back go in together, before any other change.
                    self._inside |= self._held_back
                    self._held_back.clear()
                    self._moved.notify_all()

    def _acquire(self, thread: int, wanted: Callable[[], bool]) -> bool:
        with self._moved:
            self._since = self._since if self._waiting else time.monotonic()
            self._waiting += 1
            try:
                while self._changer or self._inside:
                    if not wanted():
                        return False
                    self._moved.wait(_LOOK)
                self._changer = thread
                return True
            finally:
                self._waiting -= 1
                if not self._changer:
                    self._moved.notify_all()


def gate_passes(model: nn.Module, gate: Gate) -> None:
    """Make every call of a model, and of the models within it (its decoder, its encoder), a pass of a gate."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if module is model or isinstance(module, PreTrainedModel):
            # An attribute of the object, as accelerate does it too: the class is everybody's.
            vars(module)["forward"] = MethodType(_passing(type(module).forward, gate), module)


def _passing(forward: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    @wraps(forward)  # generation reads the names of its arguments
    def forward_in_pass(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a lock cannot be in a graph: see `Elastic.frozen`
            return forward(self, *args, **kwargs)
        with gate.passing():
            return forward(self, *args, **kwargs)

    return forward_in_pass
