"""Invalid vectors of volumes: the superblock (§2), the table (§4.8), and the objects themselves (§7.7)."""

from typing import Any

from .bits import Spliced
from .file import File
from .invalid_head import after, head, patched
from .invalid_metadata import drop, put
from .samples import sample
from .valid_shapes import raw_file
from .valid_volumes import cut_at
from .vector import Change, Invalid, Refusals

BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "hidden": ".a",
    "option": "-a",
    "parent": "../a",
    "parent_last": "a/..",
    "absolute": "/etc/passwd",
    "folder": "a/b",
    "backslash": "a\\b",
    "share": "\\\\host\\a",
    "drive": "C:a",
    "url": "http://example.org/a",
    "query": "a?b",
    "fragment": "a#b",
    "escaped": "a%2fb",
    "nul": "a\0",
    "line_feed": "a\n",
    "space": "a b",
    "letter_of_another_script": "\u0430",
    "accent": "é",
    "of_256_characters": "a" * 256,
}


def base() -> File:
    """Three volumes of ten blocks: the first four are raw."""
    return cut_at(sample(), 4, 7)


def equal() -> File:
    """Three volumes of one length, a block of 64 bytes in each but the first, which has the head too."""
    blocks = {"a": bytes(range(64)), "b": bytes(range(64, 128)), "c": b"c" * 64}
    return cut_at(raw_file(*((name, [64], "U8", data) for name, data in blocks.items())), 1, 2)


def length(file: File, number: int) -> int:
    """Bytes of one volume, counted from 0."""
    data, others = file.objects()
    return len([data, *others.values()][number])


def volumes() -> list[Invalid]:
    """Everything about them that opening finds."""
    r = Refusals(base)
    r.each(
        "superblock-invalid",
        "2",
        "object-length",
        zero=head(reserved=0),
        in_the_head=head(reserved=200),
        before_the_attachments_end=lambda f: _ends_at(f, lambda first: first - 64),
        after_all=lambda f: _says(f, lambda own, end: end + 64),
        largest=head(reserved=(1 << 64) - 1),
        before_the_volume_ends=lambda f: _ends_at(f, lambda first: first, then=-64),
        beyond_the_volume=lambda f: _ends_at(f, lambda first: first, then=64),
        of_the_second_volume_too=lambda f: _ends_at(f, lambda first: first, then=length(base_of(f), 1)),
        of_a_prefix_in_volumes=_prefix_apart,
    )
    r.each("truncated", "7.1", "first-volume", short=after(lambda d: d[:-1]), of_the_head=after(lambda d: d[:900]))
    r.each(
        "trailing-bytes",
        "7.1",
        "first-volume",
        long=after(lambda d: d + b"\0"),
        with_the_others_behind_it=lambda f: f.objects()[0] + b"".join(f.objects()[1].values()),
    )
    r.each("not-bstk", "7.7", "second-volume", in_place_of_the_first=lambda f: next(iter(f.objects()[1].values())))
    table(r)
    return list(r)


def base_of(file: File) -> File:
    """The same file, unchanged."""
    out = base()
    out.stem = file.stem
    return out


def _says(file: File, change: Any) -> bytes:
    data = base_of(file).seal()
    own, end = (int.from_bytes(data[at : at + 8], "little") for at in (88, 72))
    return patched(data, 88, change(own, end).to_bytes(8, "little"))


def _ends_at(file: File, where: Any, then: int = 0) -> bytes:
    """An object that has as many bytes as it says, which is not where the first volume ends."""
    data, others = base_of(file).objects()
    stop = where(_blocks_offset(data) if then == 0 else len(data)) + then
    return patched((data + b"".join(others.values()))[:stop], 88, stop.to_bytes(8, "little"))


def _blocks_offset(data: bytes) -> int:
    """Where the first block starts."""
    number = lambda at: int.from_bytes(data[at : at + 8], "little")  # noqa: E731
    return -(-(128 + number(32) + number(48) + number(64)) // 64) * 64


def _prefix_apart(file: File) -> bytes:
    data, others = base_of(file).objects()
    present = len(data) + len(others[f"{file.stem}.00002.bstk"])
    return patched(data, 80, present.to_bytes(8, "little"))


def table(r: Refusals) -> None:
    """§4.8: the table."""
    name = lambda value: put("volumes", 1, "name", to=value)  # noqa: E731
    first = lambda value: put("volumes", 1, "first_block", to=value)  # noqa: E731
    r.each(
        "metadata-key",
        "4.8",
        "volumes",
        missing=drop("volumes"),
        without_the_bit=_without_the_bit,
        name_missing=drop("volumes", 0, "name"),
        first_block_missing=drop("volumes", 1, "first_block"),
        length_of_a_volume=put("volumes", 0, "length", to=64),
        digest_of_a_volume=put("volumes", 0, "digest", to=bytes(32)),
    )
    r.each(
        "metadata-value",
        "4.8",
        "volumes",
        none=put("volumes", to=[]),
        nil=put("volumes", to=None),
        map=put("volumes", to={}),
        number=put("volumes", to=2),
        of_text=put("volumes", to=["a.bstk", "b.bstk"]),
        of_nil=put("volumes", 0, to=None),
        name_bytes=name(b"a"),
        name_number=name(1),
        name_array=name(["a"]),
        first_block_negative=first(-1),
        first_block_boolean=first(True),
        first_block_float=first(7.0),
        first_block_text=first("7"),
        first_block_beyond_all=first(10),
        first_block_at_the_limit=first(1 << 22),
        first_block_beyond_the_limit=first((1 << 22) + 1),
        first_block_largest=first((1 << 64) - 1),
        first_block_twice=first(4),
        first_block_falls=first(3),
        overlapping=put("volumes", 0, "first_block", to=8),
    )
    for key, value in BAD_NAMES.items():
        r.each("metadata-name", "4.8", "volume-name", **{key: name(value)})
    r.each("metadata-msgpack", "4.1", "volume-name", not_utf_8=name(Spliced(b"\xa2\xc3\x28")))
    r.each(
        "metadata-duplicate",
        "4.8",
        "volume",
        twice=lambda f: name(f"{f.stem}.00002.bstk")(f),
        twice_but_for_case=lambda f: name(f"{f.stem}.00002.BSTK")(f),
    )


def _without_the_bit(file: File) -> None:
    file.head |= {"must": 0, "reserved": 0}
    file.joined = True


def objects() -> list[Invalid]:
    """§7.7: opening passes, and reading everything finds the fault."""
    r = Refusals(base)
    second = lambda change: _changed("00002", change)  # noqa: E731
    r.each(
        "volume-missing",
        "7.7",
        "volume-missing",
        opens=True,
        the_second=_others(lambda f, others: others.pop(f"{f.stem}.00002.bstk")),
        the_last=_others(lambda f, others: others.pop(f"{f.stem}.00003.bstk")),
        all=_others(lambda f, others: others.clear()),
        under_another_name=_others(_renamed),
    )
    r.each(
        "volume-truncated",
        "7.7",
        "volume-short",
        opens=True,
        by_a_byte=second(lambda d: d[:-1]),
        by_its_padding=second(lambda d: d.rstrip(b"\0")),
        empty=second(lambda d: b""),
        the_last=_changed("00003", lambda d: d[:-1]),
    )
    r.each(
        "volume-trailing-bytes",
        "7.7",
        "volume-long",
        opens=True,
        by_a_byte=second(lambda d: d + b"\0"),
        twice=second(lambda d: d * 2),
        the_last_padded=_changed("00003", lambda d: d + bytes(-len(d) % 64)),
    )
    r.each(
        "volume-trailing-bytes",
        "7.7",
        "volume-swapped",
        opens=True,
        last_by_the_first=_others(lambda f, others: others.update({f"{f.stem}.00003.bstk": base_of(f).seal()})),
        second_by_the_first=_others(lambda f, others: others.update({f"{f.stem}.00002.bstk": base_of(f).seal()})),
    )
    r.each(
        "block-digest",
        "7.2",
        "volume-damaged",
        opens=True,
        in_a_block=second(lambda d: bytes([d[0] ^ 1]) + d[1:]),
        of_zeros=second(lambda d: bytes(len(d))),
    )
    r.each("padding", "7.2", "volume-damaged", opens=True, in_its_padding=second(lambda d: d[:-1] + b"\1"))
    r.each(
        "padding",
        "7.2",
        "first-volume-damaged",
        opens=True,
        in_its_padding=lambda f: setattr(f, "change", lambda d: d[:-1] + b"\1"),
    )
    lengths = [length(base(), number) for number in (1, 2)]
    found = "volume-trailing-bytes" if lengths[0] < lengths[1] else "volume-truncated"
    r.each(found, "7.7", "volume-swapped", opens=True, with_the_next=_others(_swap))
    same = Refusals(equal)
    same.each("block-digest", "7.7", "volumes-of-one-length", opens=True, swapped=_others(_swap))
    return [*r, *same]


def _others(change: Any) -> Change:
    def edit(file: File) -> None:
        file.change_others = lambda others: change(file, others)

    return edit


def _changed(number: str, change: Any) -> Change:
    def edit(file: File, others: dict[str, bytes]) -> None:
        name = f"{file.stem}.{number}.bstk"
        others[name] = change(others[name])

    return _others(edit)


def _renamed(file: File, others: dict[str, bytes]) -> None:
    others[f"{file.stem}.bin"] = others.pop(f"{file.stem}.00003.bstk")


def _swap(file: File, others: dict[str, bytes]) -> None:
    two, three = f"{file.stem}.00002.bstk", f"{file.stem}.00003.bstk"
    others[two], others[three] = others[three], others[two]
