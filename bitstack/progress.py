"""How long work reports itself, without saying how it is shown."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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


@contextmanager
def so_far(report: Reporter, name: str) -> Iterator[Callable[[int, int], None]]:
    """A stage of bytes, for calls that say how many are done by now, and of how many; it begins with the first one."""
    with ExitStack() as stack:
        bar: list[Advance] = []
        before = 0

        def progress(done: int, total: int) -> None:
            nonlocal before
            if not bar:
                bar.append(stack.enter_context(report.stage(name, total, "B")))
            bar[0](done - before)
            before = done

        yield progress
