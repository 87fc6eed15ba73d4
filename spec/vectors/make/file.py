"""A file as a description that can be wrong in any place, and the bytes it makes.

`File.seal` computes whatever the description leaves open (offsets, lengths, digests, the root), so that a vector
breaks the one rule that it is about and nothing before it.
"""

import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .bits import Spliced, align, digest, frame, pack

MAGIC = b"\x89BSTK\r\n\x1a\n\x00"
#: The fields that the root covers, spec §2.
SUPERBLOCK = {
    "magic": "10s",
    "major": "H",
    "minor": "H",
    "superblock_size": "H",
    "must": "Q",
    "may": "Q",
    "metadata_stored": "Q",
    "metadata_length": "Q",
    "index_stored": "Q",
    "index_length": "Q",
    "attachments_length": "Q",
    "file_length": "Q",
}
#: The columns of the index, spec §5.
COLUMNS = {
    "offset": "Q",
    "stored": "Q",
    "length": "Q",
    "digest": "32s",
    "worth": "f",
    "chain": "I",
    "level": "H",
    "form": "H",
}


@dataclass
class Block:
    """One block: its stored bytes and its row of the index; what is None is computed from them.

    Attributes:
        data: the payload; ``seal`` stores it as it is, or in a frame where the form's codec is zstd.
        stored_data: the stored bytes, where they are not made from ``data``.
    """

    chain: int
    level: int
    form: int
    data: bytes
    worth: float = 0.0
    stored_data: bytes | None = None
    offset: int | None = None
    stored: int | None = None
    length: int | None = None
    digest: bytes | None = None


@dataclass
class External:
    """An attachment outside of the head: ``stored_data`` where its stored bytes are not made from ``data``."""

    name: str
    data: bytes
    codec: str = "none"
    stored_data: bytes | None = None

    def bytes(self) -> bytes:
        """What lies in the file."""
        if self.stored_data is not None:
            return self.stored_data
        return frame(self.data) if self.codec == "zstd" else self.data


@dataclass
class File:
    """A file to be made.

    Attributes:
        tensors, forms, aliases, curves, extra, writer: the metadata, as maps.
        inline: attachments in the head, name to bytes. external: those after it.
        blocks: in the order of the file. required: None for the raw blocks alone.
        head: values of the superblock that replace those computed, ``present_length``, ``reserved`` and ``root`` too.
        change_meta: called with the finished metadata map before it is packed.
        metadata, index: what replaces those sections before compression.
        metadata_frame, index_frame: how they are compressed.
        rows: the block count that the index declares.
        fill: the byte between two parts. gaps: more such bytes before the block of that number, or after the last.
        change: called with the finished bytes.
        present: how many blocks there are, where it is not all of them.
        volumes: the volumes after the first, as maps; a name that is None is ``stem`` and a number.
        joined: whether all of them lie in one object nevertheless.
        change_others: called with the finished volumes after the first, by name.
    """

    tensors: list[dict[str, Any]] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    aliases: dict[str, Any] = field(default_factory=dict)
    inline: dict[str, bytes] = field(default_factory=dict)
    external: list[External] = field(default_factory=list)
    curves: list[Any] = field(default_factory=list)
    extra: dict[str, Any] | Spliced = field(default_factory=dict)
    writer: Any = "vectors"
    required: int | None = None
    head: dict[str, Any] = field(default_factory=dict)
    change_meta: Callable[[dict[str, Any]], object] = lambda meta: None
    metadata: bytes | None = None
    index: bytes | None = None
    metadata_frame: Callable[[bytes], bytes] = frame
    index_frame: Callable[[bytes], bytes] = frame
    rows: int | None = None
    fill: bytes = b"\0"
    gaps: dict[int, int] = field(default_factory=dict)
    change: Callable[[bytes], bytes] = lambda data: data
    present: int | None = None
    volumes: list[Any] | None = None
    stem: str = ""
    joined: bool = False
    change_others: Callable[[dict[str, bytes]], object] = lambda others: None

    def copy(self) -> "File":
        """A copy to change."""
        return deepcopy(self)

    def stored(self, block: Block) -> bytes:
        """The bytes of a block in the file."""
        if block.stored_data is not None:
            return block.stored_data
        known = self.forms[block.form] if block.form < len(self.forms) else {}
        return frame(block.data) if known.get("codec") == "zstd" else block.data

    def raw_blocks(self) -> int:
        """How many leading blocks are of form ``raw``: what is required where nothing else is said."""
        kinds = [self.forms[b.form].get("kind") if b.form < len(self.forms) else "" for b in self.blocks]
        return next((i for i, kind in enumerate(kinds) if kind != "raw"), len(kinds))

    def meta(self) -> dict[str, Any]:
        """The metadata map."""
        attachments: list[Any] = [{"name": n, "length": len(d), "data": d} for n, d in self.inline.items()]
        at = 0
        for item in self.external:
            data = item.bytes()
            record = {"name": item.name, "length": len(item.data), "codec": item.codec, "digest": digest(data)}
            attachments.append(record | {"offset": at, "stored": len(data)})
            at += len(data)
        meta = {
            "writer": self.writer,
            "tensors": deepcopy(self.tensors),
            "forms": deepcopy(self.forms),
            "aliases": self.aliases,
            "attachments": attachments,
            "curves": deepcopy(self.curves),
            "extra": self.extra,
        }
        if self.volumes is not None:
            meta["volumes"] = self.volume_maps()
        self.change_meta(meta)
        return meta

    def volume_maps(self) -> list[Any]:
        """The volumes after the first, with their names."""
        maps = deepcopy(self.volumes or [])
        for number, item in enumerate(maps, 2):
            if isinstance(item, dict) and item.get("name", "") is None:
                item["name"] = f"{self.stem}.{number:05d}.bstk"
        return maps

    @property
    def apart(self) -> bool:
        """Whether the blocks lie in several objects."""
        return self.volumes is not None and not self.joined and self.present is None

    def offsets(self) -> list[int]:
        """Where each block lies, counted from the first."""
        out, end = [], 0
        for i, block in enumerate(self.blocks):
            out.append(align(end) + self.gaps.get(i, 0))
            end = out[-1] + len(self.stored(block))
        return out

    def index_bytes(self) -> bytes:
        """The index before compression."""
        rows = []
        for offset, block in zip(self.offsets(), self.blocks, strict=True):
            data = self.stored(block)
            computed = {"offset": offset, "stored": len(data), "length": len(block.data), "digest": digest(data)}
            row = {name: getattr(block, name) for name in COLUMNS}
            rows.append({name: computed[name] if value is None else value for name, value in row.items()})
        required = self.raw_blocks() if self.required is None else self.required
        out = struct.pack("<QQ", len(rows) if self.rows is None else self.rows, required)
        return out + b"".join(struct.pack("<" + code, row[name]) for name, code in COLUMNS.items() for row in rows)

    def seal(self) -> bytes:
        """The bytes of the object, or of the first volume."""
        return self.objects()[0]

    def objects(self) -> tuple[bytes, dict[str, bytes]]:
        """The bytes of the object, or of the first volume; and the other volumes by name."""
        metadata = pack(self.meta()) if self.metadata is None else self.metadata
        index = self.index_bytes() if self.index is None else self.index
        sections = self.metadata_frame(metadata) + self.index_frame(index)
        attachments = b"".join(item.bytes() for item in self.external)
        first = align(128 + len(sections) + len(attachments))
        ends = [offset + len(self.stored(b)) for offset, b in zip(self.offsets(), self.blocks, strict=True)]
        total = first + (ends[-1] if ends else 0) + self.gaps.get(len(self.blocks), 0)
        values = {
            "magic": MAGIC,
            "major": 1,
            "minor": 0 if self.volumes is None else 1,
            "superblock_size": 128,
            "must": 0 if self.volumes is None else 1,
            "may": 0,
            "metadata_stored": len(self.metadata_frame(metadata)),
            "metadata_length": len(metadata),
            "index_stored": len(self.index_frame(index)),
            "index_length": len(index),
            "attachments_length": len(attachments),
            "file_length": total,
        } | self.head
        covered = b"".join(struct.pack("<" + code, values[name]) for name, code in SUPERBLOCK.items())
        root = values.get("root", digest(covered + sections))
        present = total if self.present is None else first + ends[self.present - 1]
        # Where each volume begins, and where the last one ends; the first may be all that there is.
        cuts = [first + self.offsets()[item["first_block"]] for item in self.volume_maps()] if self.apart else []
        cuts = [0, *cuts, present]
        own = 0 if self.volumes is None else cuts[1]
        tail = struct.pack("<QQ32s", values.get("present_length", present), values.get("reserved", own), root)
        out = bytearray(covered + tail + sections + attachments)
        for offset, block in zip(self.offsets(), self.blocks, strict=True):
            out += self.fill * (first + offset - len(out)) + self.stored(block)
        out += self.fill * (total - len(out))
        pieces = [bytes(out[start:stop]) for start, stop in pairwise(cuts)]
        others = dict(zip((item["name"] for item in self.volume_maps()), pieces[1:], strict=False))
        self.change_others(others)
        return self.change(pieces[0]), others
