"""Settings in nested sections: dataclasses whose fields carry their own type, range and meaning.

`bitstack.recipe` declares them; everything that reads, checks, lists or prints them is here.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from bsformat.errors import RecipeError

from .fields import Choice, Kind

T = TypeVar("T")


def option(kind: Kind, default: T, meaning: str, *, flag: str | None = None) -> T:
    """A setting.

    Args:
        meaning: what it does, one phrase; the help of its flag and its row in the documentation.
        flag: where the command line has a name for it other than its path.
    """
    value: T = field(default=default, metadata={"kind": kind, "meaning": meaning, "flag": flag})
    return value


class Section:
    """A part of a recipe, whose options are checked whenever one is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            if "kind" in item.metadata:
                value = checked(item.metadata["kind"], getattr(self, item.name), item.name)
                object.__setattr__(self, item.name, value)


def checked(kind: Kind, value: Any, path: str) -> Any:
    """The value in its one form.

    Raises:
        RecipeError: it is not accepted; one line with the path, the value and what is expected.
    """
    try:
        return kind.check(value)
    except ValueError as error:
        near = difflib.get_close_matches(str(value), kind.names, 1) if isinstance(kind, Choice) else []
        hint = f" ({error})" if str(error) else f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"{path}: {_quoted(value)} is not {kind.expected}{hint}") from None


def merged(base: T, values: Any, path: str = "", root: Any = None) -> T:
    """A recipe, or a section of one, with the values of a nested mapping put over it.

    Args:
        path: of the section, and root: the whole that it is part of, for messages.

    Raises:
        RecipeError: an unknown key, or a value that its setting does not accept.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{path or 'the recipe'}: {_quoted(values)} is not a mapping of settings")
    root = base if root is None else root
    known = {f.name: f for f in fields(base) if _is_setting(f)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in known:
            raise RecipeError(f"{inner[:200]}: no such setting{_suggestion(str(key), inner, list(known), root)}")
        kind = known[key].metadata.get("kind")
        changes[key] = checked(kind, value, inner) if kind else merged(getattr(base, key), value, inner, root)
    return replace(base, **changes)  # type: ignore[type-var]


def _is_setting(item: Field[Any]) -> bool:
    return "kind" in item.metadata or is_dataclass(item.type)


def _suggestion(key: str, path: str, names: list[str], root: Any) -> str:
    if near := difflib.get_close_matches(key, names, 1):
        return f"; did you mean {path.removesuffix(key)}{near[0]}?"
    elsewhere = [e.path for e in settings_of(root) if e.path.rpartition(".")[2] == key]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"; there are {', '.join(names)}"


def _quoted(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 80 else repr(value)[:79] + "…"


def plain(section: Any) -> dict[str, Any]:
    """All settings of a section as plain values, sections in it as mappings."""
    out: dict[str, Any] = {}
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            out[item.name] = plain(value)
        elif "kind" in item.metadata:
            out[item.name] = list(value) if isinstance(value, tuple) else value
    return out


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: ``path`` is its YAML key with those of its sections, joined by dots."""

    path: str
    kind: Kind
    value: Any
    meaning: str
    flag: str


def settings_of(section: Any, path: str = "") -> Iterator[Setting]:
    """All settings of a section and of those in it, in the order of the dataclasses; `Setting.value` is its own."""
    for item in fields(section):
        inner, value = f"{path}{item.name}", getattr(section, item.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{inner}.")
        elif "kind" in item.metadata:
            meta = item.metadata
            flag = meta["flag"] or "--" + inner.removeprefix("decompose.").replace(".", "-").replace("_", "-")
            yield Setting(inner, meta["kind"], value, meta["meaning"], flag)
