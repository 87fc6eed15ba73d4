"""Strict MessagePack: text keys, no duplicates, no extension types, bounded depth, finite numbers (spec §4.1)."""

import math
import reprlib
from typing import Any

import msgpack

from .errors import FormatError
from .registry import MAX_CONTAINERS, MAX_DEPTH, MAX_DIMENSIONS

Value = Any

_QUOTE = reprlib.Repr()
_QUOTE.maxlist = _QUOTE.maxdict = MAX_DIMENSIONS
_QUOTE.maxstring = _QUOTE.maxlong = 100


class _Counter:
    """Counts the maps and arrays while they are decoded, since empty ones take far more memory than bytes."""

    def __init__(self) -> None:
        self.left = MAX_CONTAINERS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _Refused(f"more than {MAX_CONTAINERS} maps and arrays")

    def pairs(self, pairs: list[tuple[Value, Value]]) -> dict[str, Value]:
        self.take()
        return _pairs(pairs)

    def items(self, items: list[Value]) -> list[Value]:
        self.take()
        return items


def _pairs(pairs: list[tuple[Value, Value]]) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise _Refused(f"map key {quoted(key)} is not text")
        if key in out:
            raise _Refused(f"duplicate key {key!r}")
        out[key] = value
    return out


def _extension(code: int, data: bytes) -> Value:
    raise _Refused(f"extension type {code}")


def quoted(value: Value) -> str:
    """A value for a message: the beginning of it, since a hostile file may hold one of millions of items."""
    return _QUOTE.repr(value)


class _Refused(ValueError):
    pass


def unpack(data: bytes, where: str) -> dict[str, Value]:
    """Decode one map that fills ``data`` exactly.

    Raises:
        FormatError: reason ``metadata-msgpack``.
    """
    counter = _Counter()
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=counter.pairs,
            list_hook=counter.items,
            ext_hook=_extension,
        )
        if not isinstance(value, dict):
            raise _Refused(f"the outermost value is {type(value).__name__}, not a map")
        _check(value)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        detail = str(error) or type(error).__name__
        raise FormatError(
            f"metadata is not strict MessagePack: {detail}", where=where, reason="metadata-msgpack"
        ) from None
    return value


def pack(value: dict[str, Value]) -> bytes:
    """Encode a map; the same map, in the same order of keys, gives the same bytes.

    Raises:
        FormatError: reason ``metadata-msgpack``.
    """
    try:
        _check(value)
        data: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"metadata cannot be strict MessagePack: {error}", reason="metadata-msgpack") from None
    return data


def _check(root: Value) -> None:
    # One iterator a level, not a list of what is left: a few bytes can hold a million values.
    levels = [iter([root])]
    while levels:
        for value in levels[-1]:
            if isinstance(value, float) and not math.isfinite(value):
                raise _Refused(f"number {value} is not finite")
            if isinstance(value, (dict, list)):
                if len(levels) > MAX_DEPTH:
                    raise _Refused(f"nested deeper than {MAX_DEPTH}")
                levels.append(iter(value.values() if isinstance(value, dict) else value))
                break
            if not isinstance(value, (str, bytes, int, float, bool, type(None))):
                raise _Refused(f"type {type(value).__name__}")
        else:
            levels.pop()
