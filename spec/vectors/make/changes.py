"""Changes of values that JSON can hold: what makes a sound one wrong."""

from collections.abc import Callable
from typing import Any

Change = Callable[[dict[str, Any]], object]


def nothing(value: dict[str, Any]) -> None:
    """No change."""


def at(*path: Any, to: Any) -> Change:
    """Put a value deep into a map."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


def edit(how: Callable[[str], str], *path: Any) -> Change:
    """Change a text deep in a map."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = how(value[path[-1]])

    return change


def without(*path: Any) -> Change:
    """Remove a member."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


def nested(depth: int) -> Any:
    """So many arrays in each other."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value
