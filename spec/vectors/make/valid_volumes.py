"""Valid vectors of volumes (§4.8), and of what a file says of its history (§4.7)."""

from collections.abc import Iterator
from typing import Any

from .file import File
from .samples import sample
from .valid_shapes import raw_file, smallest
from .vector import Valid


def cut_at(file: File, *firsts: int) -> File:
    """The file in volumes that begin with those blocks."""
    file.volumes = [{"name": None, "first_block": block} for block in firsts]
    return file


def two_bytes() -> File:
    """Two blocks of a byte each."""
    return raw_file(("a", [], "U8", b"\x07"), ("b", [], "U8", b"\x08"))


def volumes() -> Iterator[Valid]:
    """§4.8 and §7.7."""
    yield Valid("volumes-smallest", "4.8", "two volumes of one block each", cut_at(two_bytes(), 1))
    yield Valid("volumes-2", "4.8", "the second volume has no raw block", cut_at(sample(), 4), prefixes=[7])
    every = cut_at(sample(), *range(1, 10))
    yield Valid("volumes-of-one-block-each", "4.8", "ten volumes of ten blocks", every, prefixes=[5])
    lone = cut_at(sample(), 0)
    yield Valid("volumes-first-without-blocks", "4.8", "a first volume of head and attachments alone", lone)
    framed = cut_at(sample(), 1, 6)
    framed.blocks[1].stored_data = None
    framed.volumes = [{"name": "volumes-Z.x", "first_block": 1}, {"name": "_volumes-1", "first_block": 6}]
    yield Valid("volumes-of-other-names", "4.8", "names that follow no pattern, not sorted", framed)
    minor = cut_at(sample(), 5)
    minor.head["minor"] = 0
    yield Valid("writer-volumes-of-minor-0", "3", "a writer that stores too low a minor version", minor)
    later = cut_at(sample(), 5)
    later.head["minor"] = 9
    yield Valid("volumes-of-minor-9", "3", "volumes in a file of a later minor version", later)
    for what, file in _in_one_object():
        file.stem = "volumes-2"  # so that all of them have one root
        yield Valid(f"volumes-{what[0]}", "2", what[1], cut_at(file, 4), prefixes=[4])
    short = cut_at(sample(), 7)
    short.present = 5
    yield Valid("volumes-prefix-in-the-first", "2", "a prefix file that ends within the first volume", short)
    named = sample()
    names = ["0", "_", "a-b.c_d", "x..y", "Z" * 255, "volumes-names.bstk", "__proto__", "constructor", "CON", "a.b."]
    named.volumes = [{"name": name, "first_block": block} for block, name in enumerate(names)]
    named.joined = True
    yield Valid("volumes-names", "4.8", "the longest name, one of one character, names with a meaning elsewhere", named)


def _in_one_object() -> Iterator[tuple[tuple[str, str], File]]:
    joined = sample()
    joined.joined = True
    yield ("joined", "the volumes of volumes-2 joined in one object, of the same root"), joined
    for held, where in ((4, "ends where the first volume ends"), (8, "ends within the second volume")):
        file = sample()
        file.present = held
        yield (f"prefix-of-{held}-blocks", f"a prefix file of volumes-2 that {where}"), file


def history() -> Iterator[Valid]:
    """§4.7: `bstk.history` binds writers; a reader takes any value."""
    step = {
        "operation": "repack",
        "writer": "vectors",
        "root": "0123456789abcdef" * 4,
        "blocks": 10,
        "options": {"order": "average", "levels": 3},
    }
    first = {"operation": "repack", "writer": "another program", "root": "f" * 64, "blocks": 7, "options": {}}
    yield _said("history", "a file that was repacked twice, the second time from a prefix file", [step, first])
    yield _said("history-empty", "a history of no step", [])
    yield _said("writer-history-no-array", "a history that is text", "repacked")
    shows = "steps that are no maps, and one of another shape"
    yield _said("writer-history-of-other-steps", shows, [None, 1, {"": []}])
    yield _said(
        "writer-history-of-another-root",
        "a root that is none, and an operation that nobody knows",
        [step | {"root": "../../x", "operation": "undo", "blocks": -1}],
    )


def _said(name: str, shows: str, value: Any) -> Valid:
    file = smallest()
    file.extra = {"bstk.history": value, "recipe": "none"}
    return Valid(name, "4.7", shows, file)
