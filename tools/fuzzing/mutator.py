"""One mutation of a file: of some part of it, with the digests repaired so that readers come to what was changed."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from . import rows, trees
from .parts import SUPERBLOCK, Map, Parts, compress, split

Bytes = Callable[[bytes], bytes]
#: What is not mutated further: larger files are slow and show nothing more.
MAX_BYTES: Final = 1 << 14


def mutate(data: bytes, random: Random, donors: Sequence[bytes] = (), bytes_of: Bytes | None = None) -> bytes:
    """A changed file.

    Args:
        random: what draws the mutation; the same state gives the same file.
        donors: sound files: parts of them may come in, or one of them is changed instead, so that much of what is made
            is nearly sound whatever ``data`` is.
        bytes_of: how a string of bytes is changed where nothing is known of it; drawn from ``random`` where it is None.
    """
    change = bytes_of or (lambda some: mutate_bytes(some, random))
    level = random.random()
    if level < 0.05:
        return change(data)[:MAX_BYTES]
    if donors and level > 0.75:
        data = random.choice(donors)
    parts = split(change(data) if level < 0.10 else data)
    if parts is None and donors:
        parts = split(random.choice(donors))
    if parts is None:
        return change(data)[:MAX_BYTES]
    donor = split(random.choice(donors)) if donors and random.random() < 0.3 else None
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5))):
        _change(parts, random, donor, change)
    try:
        made = parts.seal()
    except (OverflowError, ValueError, TypeError, RecursionError):  # what no encoding has
        return change(data)[:MAX_BYTES]
    return made if len(made) <= MAX_BYTES else data


def _change(parts: Parts, random: Random, donor: Parts | None, change: Bytes) -> None:
    kind = random.randrange(20)
    if kind < 4 and parts.tree is not None:
        trees.mutate(parts.tree, random, donor.tree if donor else None)
        if random.random() < 0.3:
            rows.fit(parts, random)
    elif kind == 4:
        parts.metadata, parts.tree = change(parts.metadata), None
    elif kind < 8:
        rows.mutate_index(parts, random)
    elif kind < 12:
        rows.mutate_block(parts, random, change)
    elif kind == 12:
        rows.add_level(parts, random)
    elif kind == 13:
        rows.reshape(parts, random)
    elif kind == 14:
        rows.reform(parts, random)
    elif kind == 15:
        _head(parts, random)
    elif kind == 16:
        _frame(parts, random, change)
    elif kind == 17:
        _attachment(parts, random, change)
    elif kind == 18 and donor:
        _cross(parts, donor, random)
    else:
        _edges(parts, random)


def _head(parts: Parts, random: Random) -> None:
    name = random.choice(list(SUPERBLOCK))
    width = {"H": 16, "Q": 64}.get(SUPERBLOCK[name])
    if width is None:
        old = parts.head[name]
        at = random.randrange(len(old))
        parts.forced[name] = old[:at] + random.randbytes(1) + old[at + 1 :]
    else:
        near = parts.head[name] + random.choice((-64, -1, 1, 64))
        parts.forced[name] = random.choice((near, near, random.choice(trees.NUMBERS))) % (1 << width)


def _frame(parts: Parts, random: Random, change: Bytes) -> None:
    """Damage a zstd frame itself: that of a section, or of a block."""
    place = random.randrange(3)
    if place == 2 and parts.rows:
        row = random.choice(parts.rows)
        row.data = change(row.data if row.data[:4] == b"\x28\xb5\x2f\xfd" else compress(row.data))
        return
    name = ("metadata", "index")[place % 2]
    section = parts.metadata if name == "metadata" else parts.index
    parts.frames[name] = change(compress(section)) if section and random.random() < 0.8 else compress(change(section))


def _attachment(parts: Parts, random: Random, change: Bytes) -> None:
    """Change the region, or add a file to it or to the head."""
    items = parts.tree.get("attachments") if parts.tree is not None else None
    if type(items) is not list or random.random() < 0.4:
        parts.attachments = change(parts.attachments) if parts.attachments else b""
        return
    data = change(bytes(random.randrange(40)))
    name = f"{random.choice(('a', 'b', 'tokenizer/a'))}{random.randrange(3)}"
    item = Map([("name", name), ("length", len(data))])
    if random.random() < 0.3:
        item.put("data", data)
    else:
        coded = random.random() < 0.5
        stored = compress(data) if coded else data
        item += [("codec", "zstd" if coded else "none"), ("digest", b""), ("offset", len(parts.attachments))]
        item.put("stored", len(stored))
        parts.attachments += stored
    items.append(item)


def _cross(parts: Parts, donor: Parts, random: Random) -> None:
    place = random.randrange(4)
    if place == 0:
        parts.tree, parts.metadata = donor.tree, donor.metadata
    elif place == 1 and donor.rows:
        parts.rows += [random.choice(donor.rows) for _ in range(random.randrange(1, 4))]
    elif place == 2:
        parts.attachments = donor.attachments
    elif parts.rows and donor.rows:
        random.choice(parts.rows).data = random.choice(donor.rows).data
    rows.fit(parts, random)


def _edges(parts: Parts, random: Random) -> None:
    """Where the object ends, and what lies between its parts."""
    kind = random.randrange(4)
    if kind < 2:
        parts.present = random.randrange(len(parts.rows) + 1) if parts.rows else None
    elif kind == 2:
        parts.gap = random.choice((b"\1", b"\xff"))
    else:
        parts.tail = random.randbytes(random.choice((1, 63, 64)))


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Bytes with a bit turned, some replaced, removed, doubled, or some more."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(out) + 1)
        count = random.choice((1, 1, 2, 4, 8))
        match random.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case 1:
                out[at : at + count] = random.randbytes(count)
            case 2:
                del out[at : at + count]
            case 3:
                out[at:at] = out[at : at + random.choice((1, 4, 16, 64))]
            case 4:
                width = random.choice((1, 2, 4, 8))
                number = random.choice(trees.NUMBERS) % (1 << 8 * width)
                out[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
            case _:
                out[at:at] = random.randbytes(count)
    return bytes(out)
