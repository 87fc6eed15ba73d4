"""How long work reports itself, without saying how it is shown."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], object]


class Reporter(Protocol):
    """Shows the progress of long work."""

    def stage(self, title: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """A stage of ``total`` units; within it, the function that it yields is called with the units done."""
        ...


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """See `Reporter.stage`."""
        yield lambda done: None
