"""Mutations of the metadata as values: of any node, of its encoding, and of what belongs together."""

from collections.abc import Callable
from random import Random
from typing import Any, Final

from .parts import Map, Raw, packed

Value = Any
#: Numbers at which a bound, a sign or a width changes.
NUMBERS: Final = (
    *(0, 1, -1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 255, 256, -32, -33, -128, -129),
    *(base + by for base in (1 << 12, 1 << 15, 1 << 16, 1 << 19, 1 << 22, 1 << 25, 1 << 30) for by in (-1, 0, 1)),
    *(base + by for base in (1 << 31, 1 << 32, 1 << 40, 1 << 50, 1 << 62, 1 << 63) for by in (-1, 0, 1)),
    *((1 << 64) - 64, (1 << 64) - 1, -(1 << 31), -(1 << 63)),
)
_FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 0.5, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 2.0**63)
_TEXTS: Final = (
    *("", "\0", "a\0b", "..", "../x", "/x", "a/../b", "a//b", "C:x", "a\\b", "\\\\s\\x", ".", "x" * 1024, "x" * 1025),
    *("\udce9", "\ud7ff", "\U0010ffff", "é" * 512, "a\nb", "none", "zstd", "raw", "sign", "plane", "sparse", "lowrank"),
    *(
        "F64",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "I64",
        "U8",
        "BOOL",
        "__proto__",
        "x-new",
        "%s",
        "{0}",
        "\u202e",
        "config.json",
    ),
)
_KEYS: Final = (
    *(
        "name",
        "shape",
        "dtype",
        "group_rows",
        "row_scale",
        "col_scale",
        "transposed",
        "kind",
        "codec",
        "rank",
        "factors",
    ),
    *("length", "data", "digest", "offset", "stored", "metric", "text", "tokens", "window", "dense", "points"),
    *("writer", "tensors", "forms", "aliases", "attachments", "curves", "extra", "auto_map", "volumes", "first_block"),
)
#: Encodings that no packer makes: reserved, extensions, lengths that are not there, numbers and text in other widths.
_ENCODINGS: Final = tuple(
    Raw(data)
    for data in (
        # Sixty thousand bytes that become far more.
        *(b"\xdd\0\0\xea\x60" + b"\x80" * 60000, b"\xdd\0\0\x4e\x20" + b"\x81\xa0\x80" * 20000),
        *(
            b"\xc1",
            b"\xd4\x01\x00",
            b"\xc7\x00\x01",
            b"\xd6\xff\0\0\0\0",
            b"\xcd\x00\x05",
            b"\xd3" + bytes(7) + b"\x05",
        ),
        *(
            b"\xd9\x01a",
            b"\xdb\x00\x00\x00\x01a",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
        ),
        *(b"\xdb\xff\xff\xff\xff", b"\xca\x7f\xc0\x00\x00", b"\xca\x3f\x80\x00\x00", b"\xdc\x00\x00", b"\xde\x00\x00"),
        *(
            b"\xa2\xc0\x80",
            b"\xa3\xed\xa0\x80",
            b"\xa1\xff",
            b"\x91" * 15 + b"\xc0",
            b"\x91" * 17 + b"\xc0",
            b"\x91" * 1100 + b"\xc0",
        ),
    )
)


def value(random: Random) -> Value:
    """A value of any type."""
    kind = random.randrange(9)
    if kind < 3:
        return random.choice(NUMBERS)
    if kind == 3:
        return random.choice(_FLOATS)
    if kind == 4:
        return random.choice(_TEXTS)
    if kind == 5:
        return random.choice((None, True, False, b"", bytes(32), b"x" * 33))
    if kind == 6 and random.random() < 0.3:
        return random.choice(_ENCODINGS)
    if kind == 7:
        return [value(random) for _ in range(random.randrange(4))]
    return Map((random.choice(_KEYS), value(random)) for _ in range(random.randrange(4)))


def mutate(tree: Map, random: Random, donor: Map | None) -> None:
    """Change one node, or a few."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        nodes = _nodes(tree)
        holder, key = random.choice(nodes)
        random.choice(_CHANGES)(holder, key, random, _nodes(donor) if donor else nodes)


def _nodes(tree: Map) -> list[tuple[list[Any], int]]:
    """Every place of a tree: the map or array, and the position in it."""
    out: list[tuple[list[Any], int]] = []
    stack: list[list[Any]] = [tree]
    while stack and len(out) < 5000:
        holder = stack.pop()
        for i in range(len(holder)):
            out.append((holder, i))
            inner = _get(holder, i)
            if isinstance(inner, list):
                stack.append(inner)
    return out or [(tree, 0)]


def _get(holder: list[Any], i: int) -> Value:
    return holder[i][1] if isinstance(holder, Map) else holder[i]


def _put(holder: list[Any], i: int, new: Value) -> None:
    if i < len(holder):
        holder[i] = (holder[i][0], new) if isinstance(holder, Map) else new


Change = Callable[[list[Any], int, Random, list[tuple[list[Any], int]]], None]


def _replace(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    _put(holder, i, value(random))


def _near(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    """A value of the same type, close to the old one."""
    old = _get(holder, i) if i < len(holder) else None
    if type(old) is int:
        _put(
            holder,
            i,
            max(-(1 << 63), min((1 << 64) - 1, old + random.choice((-64, -8, -2, -1, 1, 2, 8, 64, old, -old)))),
        )
    elif type(old) is float:
        _put(holder, i, random.choice((*_FLOATS, -old, int(max(-1e18, min(1e18, old))) if old == old else 0)))
    elif type(old) is str:
        cut = random.randrange(len(old) + 1)
        _put(
            holder, i, random.choice((random.choice(_TEXTS), old[:cut] + random.choice(_TEXTS) + old[cut:], old[:cut]))
        )
    elif type(old) is bytes:
        _put(holder, i, random.choice((old[:-1], old + b"\0", old[::-1], b"")))
    elif type(old) is bool:
        _put(holder, i, not old)
    else:
        _put(holder, i, value(random))


def _other(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    """What stands elsewhere, packed: it may be what it is put into."""
    source, at = random.choice(donors)
    if at < len(source):
        _put(holder, i, Raw(packed(_get(source, at))))


def _remove(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    del holder[i : i + 1]


def _twice(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    if i < len(holder):
        new = holder[i]
        holder.insert(random.randrange(len(holder) + 1), Map(new) if isinstance(new, Map) else new)


def _add(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    new = value(random)
    holder.insert(i, (random.choice(_KEYS), new) if isinstance(holder, Map) else new)


def _key(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    if isinstance(holder, Map) and i < len(holder):
        key = random.choice(_KEYS) if random.random() < 0.8 else value(random)
        holder[i] = (key, holder[i][1])


def _swap(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    if i < len(holder):
        j = random.randrange(len(holder))
        holder[i], holder[j] = holder[j], holder[i]


def _many(holder: list[Any], i: int, random: Random, donors: list[tuple[list[Any], int]]) -> None:
    if i < len(holder):
        holder[i:i] = [holder[i]] * random.choice((2, 8, 40))


_CHANGES: Final[tuple[Change, ...]] = (
    *(_replace, _near, _near, _near, _near, _other, _other, _remove, _twice, _add, _key, _swap, _many),
)
