"""The kinds of values that a recipe holds: what each accepts, how a command line spells it, and how it is described.

Imports nothing heavy: the command line builds its flags from these.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bsformat.errors import RecipeError

_HIGHEST: Final = 2**31 - 1


class Kind(Protocol):
    """What one field of a recipe may be."""

    @property
    def expected(self) -> str:
        """What is accepted, for messages: ``a whole number from 1 to 8``."""
        ...

    @property
    def metavar(self) -> str:
        """The value's place in the usage of a flag."""
        ...

    def check(self, value: Any) -> Any:
        """A value as it stands in YAML or Python, brought into its one form.

        Raises:
            ValueError: it is not accepted; the text says why where `expected` does not.
        """
        ...

    def parse(self, text: str) -> Any:
        """A value as it is written on a command line.

        Raises:
            ValueError: it is not accepted.
        """
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int = _HIGHEST

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return f"a whole number from {self.low} to {'2^31 - 1' if self.high == _HIGHEST else self.high}"

    @property
    def metavar(self) -> str:
        """See `Kind.metavar`."""
        return "N"

    def check(self, value: Any) -> int:
        """See `Kind.check`; a bool is no number."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError
        return value

    def parse(self, text: str) -> int:
        """See `Kind.parse`."""
        return self.check(int(text))


@dataclass(frozen=True, slots=True)
class Number:
    """Finite numbers above ``above``, up to ``high``."""

    above: float
    high: float

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return f"a number above {self.above:g}, at most {self.high:g}"

    @property
    def metavar(self) -> str:
        """See `Kind.metavar`."""
        return "X"

    def check(self, value: Any) -> float:
        """See `Kind.check`; a bool is no number, and neither is NaN."""
        if isinstance(value, str) and _is_float(value):
            raise ValueError("YAML reads it as text: an exponent needs a point before it, as in 1.0e-3")
        if type(value) not in (int, float) or not self.above < value <= self.high:
            raise ValueError
        return float(value)

    def parse(self, text: str) -> float:
        """See `Kind.parse`."""
        return self.check(float(text))


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return f"one of {', '.join(self.names)}"

    @property
    def metavar(self) -> str:
        """See `Kind.metavar`."""
        return "{" + ",".join(self.names) + "}"

    def check(self, value: Any) -> str:
        """See `Kind.check`."""
        if not isinstance(value, str) or value not in self.names:
            raise ValueError
        return value

    def parse(self, text: str) -> str:
        """See `Kind.parse`."""
        return self.check(text)


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return "true or false"

    @property
    def metavar(self) -> str:
        """See `Kind.metavar`; a switch is spelt ``--walk`` and ``--no-walk``."""
        return ""

    def check(self, value: Any) -> bool:
        """See `Kind.check`."""
        if not isinstance(value, bool):
            raise ValueError
        return value

    def parse(self, text: str) -> bool:
        """See `Kind.parse`."""
        return self.check({"true": True, "false": False}.get(text))


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is not empty; None too where the field may stay open."""

    what: str
    metavar: str
    optional: bool = False

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return f"{self.what}{', or null' if self.optional else ''}"

    def check(self, value: Any) -> str | None:
        """See `Kind.check`."""
        if value is None and self.optional:
            return None
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    def parse(self, text: str) -> str | None:
        """See `Kind.parse`."""
        return self.check(text)


@dataclass(frozen=True, slots=True)
class Described:
    """Text in a notation of its own.

    Attributes:
        read: reads the notation; raises RecipeError.
        what: what is expected, with an example.
    """

    read: Callable[[str], object]
    what: str
    metavar: str

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return self.what

    def check(self, value: Any) -> str:
        """See `Kind.check`."""
        if not isinstance(value, str):
            raise ValueError
        try:
            self.read(value)
        except RecipeError as error:
            raise ValueError(error.message) from None
        return " ".join(value.split())

    def parse(self, text: str) -> str:
        """See `Kind.parse`."""
        return self.check(text)


@dataclass(frozen=True, slots=True)
class Several:
    """One or more values of one kind: a list in YAML, ``8,6,4`` on a command line."""

    of: Kind
    most: int
    unique: bool = False

    @property
    def expected(self) -> str:
        """See `Kind.expected`."""
        return f"a list of 1 to {self.most} {'different ' if self.unique else ''}entries, each {self.of.expected}"

    @property
    def metavar(self) -> str:
        """See `Kind.metavar`."""
        return f"{self.of.metavar},{self.of.metavar},…"

    def check(self, value: Any) -> tuple[Any, ...]:
        """See `Kind.check`."""
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= self.most:
            raise ValueError
        checked = tuple(self.of.check(item) for item in value)
        if self.unique and len(set(checked)) < len(checked):
            raise ValueError
        return checked

    def parse(self, text: str) -> tuple[Any, ...]:
        """See `Kind.parse`."""
        return self.check([self.of.parse(part.strip()) for part in text.split(",")])


def shown(value: Any) -> str:
    """A value as YAML and the command line write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return str(value)
