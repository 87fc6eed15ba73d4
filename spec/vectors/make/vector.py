"""A vector: an object, and what a reader must say of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .file import File
from .report import report

Change = Callable[[File], object]


@dataclass(frozen=True)
class Valid:
    """A file that a reader must read.

    Attributes:
        name: of the vector's files. section: of the specification. shows: what is special about it, in one line.
        budgets, prefixes: see `report`.
    """

    name: str
    section: str
    shows: str
    file: File
    budgets: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)

    def make(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The objects by name, the one to open first, and the JSON."""
        self.file.stem = self.file.stem or self.name
        data, others = self.file.objects()
        facts = report(self.file, data, self.budgets, self.prefixes)
        objects = {f"{self.name}.bstk": data} | others
        return objects, {"name": self.name, "section": self.section, "shows": self.shows} | facts


@dataclass(frozen=True)
class Invalid:
    """An object that a reader must refuse.

    Attributes:
        reason: the one code of spec §9 that a reader must give.
        opens: whether opening passes, and only reading the whole object finds the fault.
        ask: what the reader is asked for besides: ``{"root": …}`` is demanded at opening, ``{"attachment": name}`` is
            read, ``{"level": [chain, level]}`` is looked up.
        unless: a feature; a reader that implements it passes over this vector.
        others: volumes after the first, by name.
    """

    name: str
    section: str
    shows: str
    reason: str
    data: bytes
    opens: bool = False
    ask: dict[str, Any] = field(default_factory=dict)
    unless: str = ""
    others: dict[str, bytes] = field(default_factory=dict)

    def make(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The objects by name, the one to open first, and the JSON."""
        facts: dict[str, Any] = {"name": self.name, "section": self.section, "shows": self.shows}
        facts |= {"reason": self.reason}
        facts |= {"opens": self.opens} | ({"ask": self.ask} if self.ask else {})
        return {f"{self.name}.bstk": self.data} | self.others, facts | ({"unless": self.unless} if self.unless else {})


class Refusals:
    """Collects invalid vectors that are small changes of one sound file."""

    def __init__(self, base: Callable[[], File]) -> None:
        self._base = base
        self._made: list[Invalid] = []

    def __iter__(self) -> Iterator[Invalid]:
        return iter(self._made)

    def each(
        self, reason: str, section: str, what: str, *, opens: bool = False, unless: str = "", **changes: Change
    ) -> None:
        """One vector for each change; its name is ``what`` and the keyword."""
        for name, change in changes.items():
            file = self._base()
            title = file.stem = f"{what}-{name}".replace("_", "-")
            made = change(file)
            data, others = (
                (made, {}) if isinstance(made, bytes) else (made if isinstance(made, File) else file).objects()
            )
            shows = title.replace("-", " ")
            self._made.append(Invalid(title, section, shows, reason, data, opens, unless=unless, others=others))

    def asked(self, reason: str, section: str, name: str, ask: dict[str, Any], *, opens: bool) -> None:
        """One vector of the sound file itself, of which something is asked that it has not."""
        shows = name.replace("-", " ")
        self._made.append(Invalid(name, section, shows, reason, self._base().seal(), opens, ask))
