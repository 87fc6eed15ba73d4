"""How long work reports itself, without saying how it is shown."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], object]


class Reporter(Protocol):
    """Shows the progress of long work."""

    def stage(self, title: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """A stage of ``total`` units; within it, the function that it yields is called with the units done.

        ``done`` of them were done by an earlier run: they count, but say nothing about how long the others take.
        """
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """See `Reporter.stage`."""
        yield lambda done: None
