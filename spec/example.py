"""The worked example of ``bstk-v1.md`` §13: builds the file, and prints the section's tables and annotated bytes.

    python spec/example.py > section.md        # between the two "example" comments of bstk-v1.md

Every zstd frame in it is made here by hand, of one raw or run-length block, so that the bytes do not depend on the
version of a library and the dump shows what they hold.
"""

import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import blake3
import numpy as np

from bsformat import MemorySource, index, metadata, payload, superblock
from bsformat import open as open_container
from bsformat.metadata import Attachment, Form, Metadata, Tensor
from bsformat.rebuild import chain_values
from bsformat.registry import align

CONFIG = b'{"model_type":"tiny"}'
TENSORS = metadata.number_chains(
    [
        Tensor("norm", (10,), "BF16"),
        Tensor("w.row_scale", (3,), "F32"),
        Tensor("w.col_scale", (10,), "F16"),
        Tensor("w", (3, 10), "F16", group_rows=2, row_scale=1, col_scale=2),
    ]
)
FORMS = (
    Form("raw", "zstd"),
    Form("raw", "none"),
    Form("sign", "none", 2, "F8_E4M3"),
    Form("sign", "none", 1, "F16"),
)
META = Metadata(
    "example",
    TENSORS,
    FORMS,
    aliases={"head": "w"},
    attachments=(Attachment("config.json", len(CONFIG), data=CONFIG),),
)
REQUIRED = 3

Line = tuple[bytes, str]


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


def payloads() -> list[bytes]:
    """The decoded payload of each block, in the order of the file."""
    return [
        _hex("3c3c") * 10,
        np.array([0.1, 0.7, -1.3], "<f4").tobytes(),
        np.array([1, 0.5, 2, 1.25, 1, 0.1, 3, 1, 0.75, 1.5], "<f2").tobytes(),
        # signs of two rows | U 2x2 | V 10x2 | scale
        _hex("a501 5a02 38b0 3c28") + _hex("38013640 b83c2830 44c13a39 82304836 35ba31b3") + scale(0.3, 0.02),
        _hex("ff03 3930") + _hex("30384036 383c30b0 443a2a39 81334836 35ba37b3") + scale(0.25, 0.01),
        _hex("0f03 c000")
        + np.array([0.125, -0.0625], "<f2").tobytes()
        + np.array([1, -2, 0.5, 0.1, 3, 1.5, -0.3, 0.7, 1, 2], "<f2").tobytes(),
    ]


def scale(*values: float) -> bytes:
    """The scales of a sign block with 8-bit factors."""
    return np.array(values, "<f4").tobytes()


#: chain, level, form and worth of each block.
ROWS = ((0, 0, 0, 0.0), (1, 0, 1, 0.0), (2, 0, 1, 0.0), (3, 0, 2, 0.5), (4, 0, 2, 0.25), (3, 1, 3, 0.125))


def frame(data: bytes) -> bytes:
    """A zstd frame of one block: run-length if all bytes are the same, else raw."""
    size = bytes([0x20, len(data)]) if len(data) < 256 else bytes([0x60]) + struct.pack("<H", len(data) - 256)
    same = data == data[:1] * len(data)
    header = (len(data) << 3 | (2 if same else 0) | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + size + header + (data[:1] if same else data)


def build() -> bytes:
    """The bytes of the example."""
    return b"".join(data for data, _ in lines())


def lines() -> Iterator[Line]:
    """The file in pieces, each with what it says."""
    decoded = payloads()
    stored = [frame(p) if FORMS[form].codec == "zstd" else p for p, (_, _, form, _) in zip(decoded, ROWS, strict=True)]
    offsets, end = [], 0
    for item in stored:
        offsets.append(align(end))
        end = offsets[-1] + len(item)
    chain, level, form, worth = zip(*ROWS, strict=True)
    rows = index.Index(
        REQUIRED,
        np.array(offsets, "<u8"),
        np.array([len(s) for s in stored], "<u8"),
        np.array([len(p) for p in decoded], "<u8"),
        np.frombuffer(b"".join(blake3.blake3(s).digest() for s in stored), "V32"),
        np.array(worth, "<f4"),
        np.array(chain, "<u4"),
        np.array(level, "<u2"),
        np.array(form, "<u2"),
    )
    sections = metadata.encode(META), index.encode(rows)
    frames = [frame(s) for s in sections]
    head = superblock.Superblock(len(frames[0]), len(sections[0]), len(frames[1]), len(sections[1]), 0, 0, 0, bytes(32))
    size = head.blocks_offset + end
    head = replace(head, file_length=size, present_length=size)
    head = replace(head, root=superblock.compute_root(head.identity(), *frames))
    yield from _superblock_lines(head)
    yield from _frame_lines(frames[0], "metadata")
    yield from _msgpack_lines(sections[0])
    yield from _frame_lines(frames[1], "index")
    yield from _index_lines(sections[1], len(stored))
    yield bytes(head.blocks_offset - head.head_length), "padding to a multiple of 64"
    for number, (data, offset) in enumerate(zip(stored, offsets, strict=True)):
        yield from _block_lines(number, data)
        following = offsets[number + 1] if number + 1 < len(offsets) else offset + len(data)
        if gap := following - offset - len(data):
            yield bytes(gap), "padding"


def _superblock_lines(head: superblock.Superblock) -> Iterator[Line]:
    data, at = head.encode(), 0
    fields = (
        (10, "magic"),
        (2, f"major {head.major}"),
        (2, f"minor {head.minor}"),
        (2, f"superblock_size {superblock.SIZE}"),
        (8, f"must {head.must}"),
        (8, f"may {head.may}"),
        (8, f"metadata_stored {head.metadata_stored}"),
        (8, f"metadata_length {head.metadata_length}"),
        (8, f"index_stored {head.index_stored}"),
        (8, f"index_length {head.index_length}"),
        (8, f"attachments_length {head.attachments_length}"),
        (8, f"file_length {head.file_length}"),
        (8, f"present_length {head.present_length}"),
        (8, "reserved"),
        (32, "root"),
    )
    for size, note in fields:
        yield data[at : at + size], note
        at += size


def _frame_lines(data: bytes, what: str) -> Iterator[Line]:
    yield data[:6] + data[6:10], f"zstd frame of the {what}: magic, header, one raw block of {len(data) - 10} bytes"


def _msgpack_lines(data: bytes) -> Iterator[Line]:
    """One piece for each key with a plain value, or for each key that opens a map or an array."""
    yield data[:1], f"map of {data[0] & 15}"
    at = 1
    for _ in range(data[0] & 15):
        at = yield from _pair_lines(data, at, "")


def _pair_lines(data: bytes, at: int, indent: str) -> Any:
    key, middle = _value(data, at)
    value, end = _value(data, middle)
    maps = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
    if maps is None:
        shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value).replace("'", '"')
        yield data[at:end], f"{indent}{key}: {shown}"
        return end
    yield data[at : middle + 1], f"{indent}{key}: array of {len(maps)}"
    at = middle + 1
    for item in maps:
        yield data[at : at + 1], f"{indent}  map of {len(item)}"
        at += 1
        for _ in item:
            at = yield from _pair_lines(data, at, indent + "    ")
    return end


def _value(data: bytes, at: int) -> tuple[Any, int]:
    """The value at ``at`` and where it ends; only the encodings that the example uses."""
    tag = data[at]
    if tag < 0x80:
        return tag, at + 1
    if tag < 0xA0:
        items: list[Any] = []
        at += 1
        for _ in range((tag & 15) * (2 if tag < 0x90 else 1)):
            item, at = _value(data, at)
            items.append(item)
        return (dict(zip(items[::2], items[1::2], strict=True)) if tag < 0x90 else items), at
    if tag < 0xC0:
        end = at + 1 + (tag & 31)
        return data[at + 1 : end].decode(), end
    if tag == 0xC4:
        end = at + 2 + data[at + 1]
        return data[at + 2 : end], end
    raise ValueError(f"encoding {tag:02x}")


def _index_lines(data: bytes, count: int) -> Iterator[Line]:
    yield data[:8], f"count {count}"
    yield data[8:16], f"required {REQUIRED}"
    at = 16
    for name, kind in index.COLUMNS:
        item = np.dtype(kind).itemsize
        per_line = max(1, 16 // item)
        for first in range(0, count, per_line):
            n = min(per_line, count - first)
            piece = data[at : at + n * item]
            at += n * item
            span = f"[{first}]" if n == 1 else f"[{first}:{first + n}]"
            values = "" if item == 32 else " " + " ".join(f"{v:g}" for v in np.frombuffer(piece, kind).tolist())
            yield piece, f"{name}{span}{values}"


def _block_lines(number: int, data: bytes) -> Iterator[Line]:
    chain, level, which, _ = ROWS[number]
    form = FORMS[which]
    name = f"block {number}, chain {chain} level {level}"
    if form.kind == "raw":
        yield data, f"{name}: {'zstd frame, run-length block' if form.codec == 'zstd' else 'elements'}"
        return
    rows = 2 if chain == 3 else 1
    parts = payload.split(form, TENSORS[3], rows, data)
    for label, part in (("signs", parts.signs), ("U", parts.u), ("V", parts.v), ("scale", parts.scale)):
        if part is not None:
            shape = " x ".join(map(str, part.shape))
            yield part.tobytes(), f"{name}: {label} [{shape}]"


def dump() -> str:
    """The annotated bytes: offset, up to 16 bytes, what they are."""
    out, at = [], 0
    for data, note in lines():
        for start in range(0, len(data), 16):
            piece = data[start : start + 16]
            out.append(f"{at + start:08x}  {piece.hex(' '):<47}  ; {note if start == 0 else '...'}")
        at += len(data)
    return "\n".join(out)


def values(blocks: int) -> np.ndarray[Any, Any]:
    """Tensor ``w`` in float64 with the first ``blocks`` blocks loaded."""
    with open_container(MemorySource(build())) as file:
        rows = payload.as_float(np.frombuffer(file.read_block(1), np.uint8), "F32")
        columns = payload.as_float(np.frombuffer(file.read_block(2), np.uint8), "F16")
        parts = []
        for chain, (first, count) in ((3, (0, 2)), (4, (2, 1))):
            held = [b for b in range(REQUIRED, blocks) if ROWS[b][0] == chain]
            levels = [(file.block(b).form, file.read_block(b)) for b in held]
            parts.append(chain_values(TENSORS[3], count, levels, rows[first : first + count], columns))
        return np.concatenate(parts)


def section() -> str:
    """The generated part of the specification."""
    with open_container(MemorySource(build())) as file:
        head = file.superblock
        plan = file.plan(120)
        facts = {
            "root": file.root,
            "head length": head.head_length,
            "first block": head.blocks_offset,
            "file length": file.size,
            "blocks": len(file),
            "required": file.index.required,
            "minimum budget": file.minimum_bytes,
            "resident bytes of all blocks": file.total_bytes,
            "budget 120: blocks": plan.n_blocks,
            "budget 120: resident bytes": plan.resident_bytes,
            "budget 120: range offset": plan.offset,
            "budget 120: range length": plan.length,
        }
        out = ["| fact | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
        out += ["| block | tensor | first row | level | kind | codec | offset | stored | length | worth |"]
        out += ["|" + "---|" * 10]
        for b in map(file.block, range(len(file))):
            cells = (b.number, b.tensor.name, b.first_row, b.level, b.form.kind, b.form.codec)
            out.append("| " + " | ".join(map(str, (*cells, b.offset, b.stored, b.length, b.worth))) + " |")
    out += ["", "```text example-bytes", dump(), "```", ""]
    for blocks in (5, 6):
        exact = values(blocks)
        for kind, shown in (("float64", exact), ("F16", exact.astype(np.float16).astype(np.float64))):
            out += [f"```text example-values w {blocks} {kind}"]
            out += [" ".join(repr(v) for v in row) for row in shown.tolist()]
            out += ["```", ""]
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(section())
