"""A file taken apart so that a part can be damaged, and put together again with every digest right.

Nothing here checks anything: what cannot be taken apart is left as bytes. `Parts.seal` computes lengths, offsets,
digests and the root anew, other than those that were forced, so that a mutation of one part gets past what stands
before it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import blake3
import msgpack
import zstandard

#: The superblock, spec §2: name and struct code of each field.
SUPERBLOCK: Final = {
    "magic": "10s",
    "major": "H",
    "minor": "H",
    "size": "H",
    "must": "Q",
    "may": "Q",
    "metadata_stored": "Q",
    "metadata_length": "Q",
    "index_stored": "Q",
    "index_length": "Q",
    "attachments_length": "Q",
    "file_length": "Q",
    "present_length": "Q",
    "reserved": "Q",
    "root": "32s",
}
_HEAD: Final = struct.Struct("<" + "".join(SUPERBLOCK.values()))
_COVERED: Final = 80
#: The columns of the index, spec §5.
COLUMNS: Final = {
    "offset": "Q",
    "stored": "Q",
    "length": "Q",
    "digest": "32s",
    "worth": "f",
    "chain": "I",
    "level": "H",
    "form": "H",
}
ROW_BYTES: Final = 68
#: Decoded sections above this many bytes, and files of more blocks, are not taken apart.
MAX_SECTION: Final = 1 << 16
MAX_ROWS: Final = 256

Value = Any


class Map(list[tuple[Value, Value]]):
    """A MessagePack map as its pairs, so that keys can come twice and be of any type."""

    def get(self, key: str) -> Value:
        """The value of a key, or None."""
        return next((value for name, value in self if name == key), None)

    def put(self, key: str, value: Value) -> None:
        """Replace the value of a key, or add it."""
        for i, (name, _) in enumerate(self):
            if name == key:
                self[i] = (key, value)
                return
        self.append((key, value))


@dataclass
class Row:
    """A block: its row of the index, and its bytes in the file.

    ``forced`` holds the cells that sealing leaves as they are.
    """

    cells: dict[str, Any]
    data: bytes
    forced: dict[str, Any] = field(default_factory=dict)


@dataclass
class Parts:
    """A file in parts.

    Attributes:
        head: the superblock's values; those in ``forced`` replace what sealing computes.
        metadata: the decoded section; ``tree`` the same as values, None where it is no MessagePack.
        frames: what stands for a compressed section ("metadata", "index") as it is.
        index: the decoded section, used where it could not be read as rows.
        attachments: the bytes of the region.
        count: the number of blocks that the index declares, None for the right one.
        present: how many leading blocks there are, None for all. apart: whether the object is a first volume.
        gap, tail: bytes of the padding, and after the end.
    """

    head: dict[str, Any]
    metadata: bytes
    index: bytes
    rows: list[Row]
    required: int
    attachments: bytes
    tree: Map | None = None
    forced: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, bytes] = field(default_factory=dict)
    count: int | None = None
    present: int | None = None
    apart: bool = False
    gap: bytes = b"\0"
    tail: bytes = b""

    def seal(self) -> bytes:
        """The bytes of the object."""
        if self.tree is not None:
            self._repair_attachments(self.tree)
            self.metadata = packed(self.tree)
        offsets, end = [], 0
        for row in self.rows:
            offsets.append(_align(end))
            end = offsets[-1] + len(row.data)
        index = self._index(offsets) if self.rows else self.index
        metadata_frame = self.frames.get("metadata") or compress(self.metadata)
        index_frame = self.frames.get("index") or compress(index)
        sections = metadata_frame + index_frame
        first = _align(128 + len(sections) + len(self.attachments))
        ends = [offset + len(row.data) for offset, row in zip(offsets, self.rows, strict=True)]
        present = len(ends) if self.present is None else min(self.present, len(ends))
        values = self.head | {
            "metadata_stored": len(metadata_frame),
            "metadata_length": len(self.metadata),
            "index_stored": len(index_frame),
            "index_length": len(index),
            "attachments_length": len(self.attachments),
            "file_length": first + end,
            "present_length": first + (ends[present - 1] if present else 0),
            "reserved": 0,
        }
        length = values["present_length"]
        if self.head["must"] & 1:
            length = values["reserved"] = self._first_volume(first, offsets, length) if self.apart else length
        values |= self.forced
        values["root"] = bytes(32)
        values["root"] = blake3.blake3(_HEAD.pack(*values.values())[:_COVERED] + sections).digest()
        values |= {"root": self.forced["root"]} if "root" in self.forced else {}
        out = bytearray(_HEAD.pack(*values.values()) + sections + self.attachments)
        for offset, row in zip(offsets, self.rows, strict=True):
            out += self.gap * (first + offset - len(out)) + row.data
        out += self.gap * (first - len(out))
        return bytes(out[:length]) + self.tail

    def _first_volume(self, first: int, offsets: list[int], length: int) -> int:
        """Where the first volume ends, as far as the table says so."""
        volumes = self.tree.get("volumes") if self.tree is not None else None
        volume = volumes[0] if isinstance(volumes, list) and volumes else None
        block = volume.get("first_block") if isinstance(volume, Map) else None
        return first + offsets[block] if type(block) is int and 0 <= block < len(offsets) else length

    def _index(self, offsets: list[int]) -> bytes:
        for row, offset in zip(self.rows, offsets, strict=True):
            row.cells |= {"offset": offset, "stored": len(row.data), "digest": blake3.blake3(row.data).digest()}
            row.cells |= row.forced
        head = struct.pack("<QQ", len(self.rows) if self.count is None else self.count, self.required)
        n = len(self.rows)
        return head + b"".join(
            b"".join(row.cells[name] for row in self.rows)
            if name == "digest"
            else struct.pack(f"<{n}{code}", *(row.cells[name] for row in self.rows))
            for name, code in COLUMNS.items()
        )

    def _repair_attachments(self, tree: Map) -> None:
        items = tree.get("attachments")
        for item in items if isinstance(items, list) else []:
            if not isinstance(item, Map):
                continue
            offset, stored = item.get("offset"), item.get("stored")
            if type(offset) is int and type(stored) is int and offset >= 0 and 0 <= stored < MAX_SECTION:
                item.put("digest", blake3.blake3(self.attachments[offset : offset + stored]).digest())


def split(data: bytes) -> Parts | None:
    """The parts of an object; None where its superblock or sections cannot be found in it."""
    if len(data) < _HEAD.size:
        return None
    head = dict(zip(SUPERBLOCK, _HEAD.unpack_from(data), strict=True))
    at = _HEAD.size
    middle, end = at + head["metadata_stored"], at + head["metadata_stored"] + head["index_stored"]
    tail = end + head["attachments_length"]
    if tail > len(data):
        return None
    metadata, index = decompress(data[at:middle]), decompress(data[middle:end])
    if metadata is None or index is None:
        return None
    rows, required = _rows(index, data, _align(tail))
    tree = unpacked(metadata)
    if head["must"] & 1 and head["reserved"] < head["present_length"]:
        return Parts(head, metadata, index, rows, required, data[end:tail], tree, apart=True)
    there = sum(_align(tail) + row.cells["offset"] + len(row.data) <= len(data) for row in rows)
    present = there if there < len(rows) else None
    return Parts(head, metadata, index, rows, required, data[end:tail], tree, present=present)


def _rows(index: bytes, data: bytes, first: int) -> tuple[list[Row], int]:
    if len(index) < 16:
        return [], 0
    n, required = struct.unpack_from("<QQ", index)
    if n > MAX_ROWS or len(index) != 16 + n * ROW_BYTES:
        return [], required
    columns, at = {}, 16
    for name, code in COLUMNS.items():
        columns[name] = struct.unpack_from("<" + code * n, index, at)
        at += struct.calcsize("<" + code) * n
    rows = []
    for i in range(n):
        cells = {name: columns[name][i] for name in COLUMNS}
        begin = first + cells["offset"]
        stored = min(cells["stored"], MAX_SECTION)
        # Zeros for what a prefix file does not hold: only their length goes into the index.
        rows.append(Row(cells, data[begin : begin + stored].ljust(stored, b"\0")))
    return rows, required


def compress(data: bytes) -> bytes:
    """One zstd frame that says its size."""
    return zstandard.ZstdCompressor(level=1, write_content_size=True, write_checksum=False).compress(data)


def decompress(data: bytes) -> bytes | None:
    """The bytes of a frame; None where it is damaged or too large."""
    try:
        if 0 <= zstandard.get_frame_parameters(data).content_size <= MAX_SECTION:
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_SECTION) or b""
    except zstandard.ZstdError:
        pass
    return None


def unpacked(data: bytes) -> Map | None:
    """The values of the metadata; None where it is no map."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=Map, unicode_errors="surrogateescape")
    except (ValueError, msgpack.UnpackException, RecursionError):
        return None
    return value if isinstance(value, Map) else None


def packed(value: Value) -> bytes:
    """MessagePack of a tree; `Raw` stands for bytes as they are."""
    out: list[bytes] = []
    _pack(value, out.append, msgpack.Packer(unicode_errors="surrogateescape"), 0)
    return b"".join(out)


def _pack(value: Value, add: Callable[[bytes], object], packer: Any, depth: int) -> None:
    kind = type(value)
    if kind is Map and depth < 200:
        add(packer.pack_map_header(len(value)))
        for key, item in value:
            _pack(key, add, packer, depth + 1)
            _pack(item, add, packer, depth + 1)
    elif kind is list and depth < 200:
        add(packer.pack_array_header(len(value)))
        for item in value:
            _pack(item, add, packer, depth + 1)
    else:
        add(value.data if kind is Raw else packer.pack(None if kind in (Map, list) else value))


@dataclass(frozen=True)
class Raw:
    """Bytes in a tree that stand there as they are."""

    data: bytes


def _align(offset: int) -> int:
    return -(-offset // 64) * 64
