"""A second implementation of the format: it takes files apart and puts them together, and shares no code with bsformat.

Every value in a file can be replaced by a wrong one, and `Image.seal` then computes whatever was left open (offsets,
lengths, digests, the root) as a writer would: so a test reaches the one check that it is about, not the digests
before it. `sample` is a small file with one of everything.
"""

import struct
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import blake3
import msgpack
import zstandard

MAGIC = b"\x89BSTK\r\n\x1a\n\x00"
SUPERBLOCK = struct.Struct("<10sHHHQQQQQQQQ")
REST = struct.Struct("<QQ32s")
FIELDS = [
    "magic",
    "major",
    "minor",
    "size",
    "must",
    "may",
    "metadata_stored",
    "metadata_length",
    "index_stored",
    "index_length",
    "attachments_length",
    "file_length",
]
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


def zstd(data: bytes, **options: Any) -> bytes:
    """One frame as the writer makes it."""
    return zstandard.ZstdCompressor(**({"level": 9, "write_checksum": False} | options)).compress(data)


def unzstd(data: bytes) -> bytes:
    """The content of one frame."""
    return zstandard.ZstdDecompressor().decompress(data)


def digest(data: bytes) -> bytes:
    """BLAKE3, 32 bytes."""
    return blake3.blake3(data).digest()


def align(offset: int) -> int:
    """The next multiple of 64."""
    return (offset + 63) // 64 * 64


@dataclass
class Block:
    """One block: its stored bytes and its row of the index; `seal` fills in each value that is None."""

    data: bytes
    chain: int
    level: int
    form: int
    worth: float = 0.0
    length: int | None = None
    stored: int | None = None
    offset: int | None = None
    digest: bytes | None = None


@dataclass
class Image:
    """A file taken apart.

    Attributes:
        meta: the metadata as msgpack takes it. attachments: the external ones, stored bytes in order; their records
            in ``meta`` are filled in where they lack ``offset``, ``stored`` or ``digest``.
        required: leading blocks that must be resident.
        superblock: values that replace those computed; ``present_length``, ``reserved`` and ``root`` too.
        metadata, metadata_stored, index, index_stored: bytes that replace those encoded, before and after compression.
        rows: the count that the index declares.
        padding: the byte that fills gaps. gaps: more bytes before the block of that number, or after the last.
    """

    meta: dict[str, Any]
    blocks: list[Block]
    attachments: list[bytes] = field(default_factory=list)
    required: int = 0
    superblock: dict[str, Any] = field(default_factory=dict)
    metadata: bytes | None = None
    metadata_stored: bytes | None = None
    index: bytes | None = None
    index_stored: bytes | None = None
    rows: int | None = None
    padding: bytes = b"\0"
    gaps: dict[int, int] = field(default_factory=dict)

    def copy(self) -> "Image":
        """A copy to change."""
        return deepcopy(self)

    def seal(self) -> bytes:
        """The file, every digest of it right."""
        metadata = self.metadata if self.metadata is not None else msgpack.packb(self._filled_meta())
        offsets, end = [], 0
        for i, block in enumerate(self.blocks):
            offsets.append(align(end) + self.gaps.get(i, 0))
            end = offsets[-1] + len(block.data)
        index = self.index if self.index is not None else self._index(offsets)
        stored = (
            zstd(metadata) if self.metadata_stored is None else self.metadata_stored,
            zstd(index) if self.index_stored is None else self.index_stored,
        )
        start = 128 + len(stored[0]) + len(stored[1]) + sum(map(len, self.attachments))
        total = align(start) + end + self.gaps.get(len(self.blocks), 0)
        values = {
            "magic": MAGIC,
            "major": 1,
            "minor": 0,
            "size": 128,
            "must": 0,
            "may": 0,
            "metadata_stored": len(stored[0]),
            "metadata_length": len(metadata),
            "index_stored": len(stored[1]),
            "index_length": len(index),
            "attachments_length": sum(map(len, self.attachments)),
            "file_length": total,
        } | self.superblock
        identity = SUPERBLOCK.pack(*(values[name] for name in FIELDS))
        root = values.get("root", digest(identity + stored[0] + stored[1]))
        rest = REST.pack(values.get("present_length", total), values.get("reserved", 0), root)
        out = bytearray(identity + rest + stored[0] + stored[1] + b"".join(self.attachments))
        for offset, block in zip(offsets, self.blocks, strict=True):
            out += self.padding * (align(start) + offset - len(out)) + block.data
        return bytes(out + self.padding * (total - len(out)))

    def _filled_meta(self) -> dict[str, Any]:
        meta, left, at = deepcopy(self.meta), list(self.attachments), 0
        records = meta.get("attachments")
        for record in records if isinstance(records, list) else []:
            if isinstance(record, dict) and "data" not in record and left:
                data = left.pop(0)
                record.update({"offset": at, "stored": len(data), "digest": digest(data)} | record)
                at += len(data)
        return meta

    def _index(self, offsets: list[int]) -> bytes:
        rows = []
        for offset, block in zip(offsets, self.blocks, strict=True):
            row = {name: getattr(block, name) for name in COLUMNS}
            computed = {
                "offset": offset,
                "stored": len(block.data),
                "length": len(block.data),
                "digest": digest(block.data),
            }
            rows.append({name: computed[name] if value is None else value for name, value in row.items()})
        count = len(rows) if self.rows is None else self.rows
        out = struct.pack("<QQ", count, self.required)
        for name, code in COLUMNS.items():
            out += b"".join(struct.pack("<" + code, row[name]) for row in rows)
        return out


def parse(data: bytes) -> Image:
    """Take a sound file apart. Nothing is checked but what is needed to find the parts."""
    fields = dict(zip(FIELDS, SUPERBLOCK.unpack_from(data), strict=True))
    middle = 128 + fields["metadata_stored"]
    head = middle + fields["index_stored"]
    meta, index = msgpack.unpackb(unzstd(data[128:middle])), unzstd(data[middle:head])
    external = [record for record in meta["attachments"] if "data" not in record]
    attachments = [data[head + r["offset"] : head + r["offset"] + r["stored"]] for r in external]
    first = align(head + fields["attachments_length"])
    count, required = struct.unpack_from("<QQ", index)
    columns, at = {}, 16
    for name, code in COLUMNS.items():
        cell = struct.Struct("<" + code)
        columns[name] = [cell.unpack_from(index, at + i * cell.size)[0] for i in range(count)]
        at += count * cell.size
    blocks = []
    for i in range(count):
        row = {name: column[i] for name, column in columns.items()}
        begin = first + row["offset"]
        blocks.append(Block(data[begin : begin + row["stored"]], **row))
    return Image(meta, blocks, attachments, required)


def floats(*values: float) -> bytes:
    """float32."""
    return struct.pack(f"<{len(values)}f", *values)


def halves(*values: float) -> bytes:
    """float16."""
    return struct.pack(f"<{len(values)}e", *values)


#: Rows and columns of the packed tensor of `sample`: neither divides by 8.
M, N = 3, 10
SIGNS_0 = bytes([0b10110010, 0b01, 0b01011101, 0b10, 0b11100011, 0b11])
SIGNS_1 = bytes([0b00110011, 0b10, 0b11011001, 0b00, 0b00000001, 0b01])
#: Rank 1, float16 factors: M × 1, then N × 1.
LEVEL_0 = SIGNS_0 + halves(0.5, 1.0, 2.0) + halves(*(0.25 * (j + 1) for j in range(N)))
#: Rank 2, e4m3 factors: M × 2, N × 2 codes, then two float32 scales.
LEVEL_1 = SIGNS_1 + bytes(range(40, 46)) + bytes(range(30, 50)) + floats(0.5, 0.125)
#: What may follow them in the chain: a plane of LEVEL_1; rank 1 without signs; entries in rows 0 and 2, none in row 1.
PLANE = bytes([0b01010101, 0b01, 0b11110000, 0b00, 0b10011001, 0b11])
LOWRANK = halves(1.5, -0.5, 0.25) + halves(*(0.125 * j for j in range(N)))


def sparse(
    scale: float = 0.5,
    starts: tuple[int, ...] = (0,),
    offsets: tuple[int, ...] = (0, 2, 2),
    columns: tuple[int, ...] = (3, 9, 0),
    values: bytes = b"\x38\xb0\x7e",
) -> bytes:
    """A sparse block; by default one for `M` rows."""
    counts = f"<f{len(starts)}I{len(offsets)}H{len(columns)}H"
    return struct.pack(counts, scale, *starts, *offsets, *columns) + values


SPARSE = sparse()
VOCABULARY = b'{"a": 0, "b": 1}' * 20


def sample() -> Image:
    """A file with one of everything: raw and packed tensors, both factor types, an alias, attachments, a curve."""
    forms = [
        {"kind": "raw", "codec": "none"},
        {"kind": "raw", "codec": "zstd"},
        {"kind": "sign", "codec": "none", "rank": 1, "factors": "F16"},
        {"kind": "sign", "codec": "none", "rank": 2, "factors": "F8_E4M3"},
    ]
    tensors = [
        {"name": "norm.weight", "shape": [4], "dtype": "F32"},
        {"name": "mask", "shape": [40, 10], "dtype": "U8"},
        {"name": "w.rows", "shape": [M], "dtype": "F32"},
        {"name": "w.columns", "shape": [N], "dtype": "F16"},
        {"name": "w.weight", "shape": [M, N], "dtype": "F16", "group_rows": M, "row_scale": 2, "col_scale": 3},
    ]
    mask = bytes(range(20)) * 20
    blocks = [
        Block(floats(1, 2, 3, 4), 0, 0, 0),
        Block(zstd(mask), 1, 0, 1, length=len(mask)),
        Block(floats(1.0, 0.5, 2.0), 2, 0, 0),
        Block(halves(*([1.0] * N)), 3, 0, 0),
        Block(LEVEL_0, 4, 0, 2, worth=2.0),
        Block(LEVEL_1, 4, 1, 3, worth=1.0),
    ]
    meta = {
        "writer": "tests",
        "tensors": tensors,
        "forms": forms,
        "aliases": {"head.weight": "w.weight"},
        "attachments": [
            {"name": "config.json", "length": 2, "data": b"{}"},
            {"name": "tokenizer/vocab.json", "length": len(VOCABULARY), "codec": "none"},
        ],
        "curves": [
            {
                "metric": "perplexity",
                "text": "none",
                "tokens": 1024,
                "window": 512,
                "dense": 25.0,
                "points": [[4, 1e9], [6, 26.5]],
            }
        ],
        "extra": {"recipe": {"rank": [1, 2]}, "note": None},
    }
    return Image(meta, blocks, [VOCABULARY], required=4)


#: Numbers of the forms of `mixed`, beyond those of `sample`.
PLANE_FORM, SPARSE_FORM, LOWRANK_FORM = 4, 5, 6


def mixed() -> Image:
    """The sample with a chain of every kind: sign, sign, plane, plane, sparse, lowrank."""
    image = sample()
    image.meta["forms"] += [
        {"kind": "plane", "codec": "none"},
        {"kind": "sparse", "codec": "none"},
        {"kind": "lowrank", "codec": "none", "rank": 1, "factors": "F16"},
    ]
    more = [
        (PLANE, PLANE_FORM),
        (PLANE[::-1][1:] + b"\x01", PLANE_FORM),
        (SPARSE, SPARSE_FORM),
        (LOWRANK, LOWRANK_FORM),
    ]
    image.blocks += [Block(data, 4, 2 + i, form) for i, (data, form) in enumerate(more)]
    return image
