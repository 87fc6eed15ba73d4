"""Invalid vectors of names (§4) and of attachments (§4.5)."""

from .bits import ZSTD_MAGIC
from .file import External, File
from .invalid_head import FRAMES, patched
from .invalid_metadata import drop, put, put_all
from .samples import NORM, VOCABULARY, framed, sample
from .vector import Change, Invalid, Refusals

BAD_FILE_NAMES = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "parent": "../a",
    "parent_within": "a/../../b",
    "parent_last": "a/..",
    "absolute": "/etc/passwd",
    "empty_part": "a//b",
    "empty_last_part": "a/",
    "this_folder": "./a",
    "drive": "C:a",
    "stream": "a:b",
    "share": "\\\\host\\a",
    "backslash": "a\\b",
    "nul": "a\0",
    "too_long": "a/" * 512 + "a",
}


#: A frame of no bytes with a checksum, the lower half of XXH64 of nothing.
NOTHING_CHECKED = ZSTD_MAGIC + b"\x24\x00" + b"\x01\0\0" + b"\x99\xe9\xd8\x51"


def names() -> list[Invalid]:
    """§4: names and file names; §4.2, §4.4 and §4.5: names that stand twice."""
    r = Refusals(sample)
    name = lambda value: put("tensors", NORM, "name", to=value)  # noqa: E731
    r.each(
        "metadata-name",
        "4",
        "name",
        empty=name(""),
        nul=name("a\0b"),
        of_1025_bytes=name("a" * 1025),
        of_1026_bytes_in_513_characters=name("é" * 513),
        writer_empty=put("writer", to=""),
        metric_empty=put("curves", 0, "metric", to=""),
        alias_empty=put("aliases", to={"": "w"}),
        alias_nul=put("aliases", to={"\0": "w"}),
    )
    for key, value in BAD_FILE_NAMES.items():
        r.each("metadata-name", "4.5", "attachment-name", **{key: put("attachments", 0, "name", to=value)})
    r.each("metadata-name", "4.5", "external-attachment-name", parent=put("attachments", 1, "name", to="../../.bashrc"))
    r.each(
        "metadata-duplicate",
        "4",
        "twice",
        tensor=name("mask"),
        alias_and_tensor=put("aliases", to={"mask": "w"}),
        attachment=put("attachments", 1, "name", to="config.json"),
    )
    return list(r)


def attachments() -> list[Invalid]:
    """§4.5 beyond the names."""
    r = Refusals(sample)
    outside = lambda **values: put_all("attachments", 1, **values)  # noqa: E731
    length = len(sample().external[0].data)
    r.each(
        "metadata-value",
        "4.5",
        "attachment",
        no_map=put("attachments", 0, to=b""),
        inline_longer_than_its_bytes=put("attachments", 0, "length", to=3),
        inline_shorter_than_its_bytes=put("attachments", 0, "length", to=1),
        inline_text=put("attachments", 0, "data", to="{}"),
        length_negative=outside(length=-1),
        length_beyond_the_limit=outside(codec="zstd", length=(1 << 30) + 1),
        length_not_what_is_stored=outside(length=length + 1),
        stored_zero=outside(stored=0),
        stored_exabyte=outside(stored=1 << 60),
        offset_negative=outside(offset=-1),
        offset_largest=outside(offset=(1 << 64) - 1),
        digest_short=outside(digest=bytes(31)),
        digest_text=outside(digest="0" * 32),
        bomb=outside(codec="zstd", length=256 * length + (1 << 16) + 1),
    )
    second = External("b", b"second")

    def swapped(file: File) -> None:
        file.external.append(second)
        file.change_meta = lambda meta: meta["attachments"].reverse()

    def overlapping(file: File) -> None:
        file.change_meta = lambda meta: meta["attachments"].append(meta["attachments"][1] | {"name": "b"})

    r.each(
        "attachment-offset",
        "4.5",
        "attachment",
        hole=outside(offset=1),
        beyond_the_region=outside(offset=1 << 60),
        shorter_than_the_region=outside(stored=length - 1, length=length - 1),
        longer_than_the_region=outside(stored=length + 1, length=length + 1),
        overlapping=overlapping,
        out_of_order=swapped,
        none_in_a_region=drop("attachments", 1),
        offset_and_stored_wrap=outside(offset=1 << 62, stored=1 << 30, length=1 << 30),
    )
    r.each("attachment-digest", "4.5", "attachment", opens=True, other_bytes=outside(digest=bytes(32)))
    r.asked("attachment-unknown", "9.5", "attachment-not-there", {"attachment": "merges.txt"}, opens=True)
    r.asked("attachment-unknown", "9.5", "attachment-of-a-name-in-capitals", {"attachment": "Config.json"}, opens=True)
    return list(r)


def attachment_frames() -> list[Invalid]:
    """§8.3 in an attachment, frames of no bytes too."""

    def compressed(data: bytes, stored: bytes) -> Change:
        return lambda file: file.external.__setitem__(0, External("v", data, "zstd", stored))

    r = Refusals(framed)
    frames = {name: compressed(VOCABULARY, make(VOCABULARY)) for name, make in FRAMES.items()}
    frames |= {
        "checksum_of_nothing_wrong": compressed(b"", patched(NOTHING_CHECKED, 9, b"\x98")),
        "checksum_of_nothing_missing": compressed(b"", NOTHING_CHECKED[:-4]),
        "nothing_without_size": compressed(b"", ZSTD_MAGIC + b"\x00\x58" + b"\x01\0\0"),
        "nothing_and_a_byte": compressed(b"", ZSTD_MAGIC + b"\x20\x00" + b"\x09\0\0x"),
    }
    r.each("attachment-codec", "8.3", "attachment-frame", opens=True, **frames)
    return list(r)
