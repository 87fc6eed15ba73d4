"""Valid vectors of the metadata, attachments, frames, prefix files, versions, and of what only binds writers."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from .bits import ZSTD_MAGIC, Noise, Spliced, f32, frame_blocks, frame_header
from .file import Block, External
from .invalid_metadata import nested
from .invalid_names import NOTHING_CHECKED
from .kinds import packed, sign_form
from .samples import MASK, VOCABULARY, sample
from .valid_shapes import raw_file, smallest
from .vector import Valid

#: Frames that a real encoder made, kept as they are since the bytes depend on its version; see the README there.
FRAMES = Path(__file__).parents[1] / "frames"


def texture() -> bytes:
    """What those frames hold: skewed noise, matches near and far, runs, and noise that does not compress."""
    noise = Noise(99)
    skewed = bytes(min(noise.bits(8), noise.bits(8), noise.bits(8)) for _ in range(2500))
    return skewed + b"bstk " * 100 + bytes(700) + noise.bytes(400) + skewed[300:1500] + skewed[:150] * 3


TEXTURE = texture()


def metadata() -> Iterator[Valid]:
    """§4.1, §4.4, §4.6 and §4.7."""
    long = smallest()
    # Every value in the longest encoding that it has, and the keys in another order.
    wide = {
        b"extra": b"\xdf\0\0\0\0",
        b"curves": b"\xdd\0\0\0\0",
        b"attachments": b"\xdc\0\0",
        b"aliases": b"\xde\0\0",
        b"forms": b"\xdd\0\0\0\1\xdf\0\0\0\2" + _long(b"kind") + _long(b"raw") + _long(b"codec") + _long(b"none"),
        b"tensors": b"\xdd\0\0\0\1\x83"
        + _long(b"dtype")
        + _long(b"U8")
        + _long(b"shape")
        + b"\xdd\0\0\0\1"
        + b"\xcf"
        + struct.pack(">Q", 1)
        + _long(b"name")
        + _long(b"a"),
        b"writer": _long(b"vectors"),
    }
    long.tensors[0]["shape"] = [1]
    long.metadata = b"\xdf" + struct.pack(">I", 7) + b"".join(_long(key) + value for key, value in wide.items())
    yield Valid("msgpack-longest-encodings", "4.1", "encodings longer than they need be, keys in another order", long)
    signed = smallest()
    signed.tensors[0]["shape"] = [1]
    signed.change_meta = lambda meta: meta["tensors"][0].update(shape=[Spliced(b"\xd3" + struct.pack(">q", 1))])
    yield Valid("msgpack-signed-encoding", "4.1", "a positive number in a signed encoding", signed)
    every = smallest()
    every.extra = {
        "nil": None,
        "booleans": [True, False],
        "integers": [0, 127, 128, 255, 256, 65535, 65536, -1, -32, -33, -128, -129, -32769, 2**53 - 1, -(2**31) - 1],
        "floats": [0.5, -1.25, 1e300],
        "texts": ["", "naïve", "\u0000", "\U0001d6fc", "a" * 40, "b" * 300],
        "bytes": [b"", b"\x00\xff", bytes(300)],
        "map": {"": {}, "list": [[]]},
    }
    yield Valid("extra-every-type", "4.7", "every type of value, in every size of its encoding", every)
    bounds = smallest()
    bounds.extra = Spliced(b"\x82\xa1a\xcf" + b"\xff" * 8 + b"\xa1b\xd3\x80" + bytes(7))
    yield Valid("extra-widest-integers", "4.1", "the largest and the smallest integer", bounds)
    deep = smallest()
    deep.extra = Spliced(b"\x81\xa1a" + nested(14))
    yield Valid("extra-depth-16", "4.1", "the deepest nesting", deep)
    reserved = smallest()
    reserved.extra = {"bstk.later": 1}
    yield Valid("extra-reserved-key", "4.7", "a key that this document keeps for itself", reserved)
    curves = sample()
    curve = curves.curves[0] | {"metric": "accuracy", "text": "", "tokens": 1 << 50, "window": 0, "dense": 1.0}
    curves.curves += [curve | {"points": []}, curve | {"points": [[0, 0.0], [1, -1.5], [10, 1e-300]]}]
    yield Valid("curves", "4.6", "three curves, one without points, one from no block at all", curves)
    floats = sample()
    floats.change_meta = lambda meta: meta["curves"][0].update(
        dense=Spliced(b"\xca" + struct.pack(">f", 25.0)),
        points=[[4, 10**9], [10, Spliced(b"\xca" + struct.pack(">f", 26.5))]],
    )
    yield Valid("curve-of-other-numbers", "4", "values as an integer and as floats of 32 bits", floats)
    names = raw_file(
        ("a" * 1024, [1], "U8", b"\1"),
        ("é", [1], "U8", b"\2"),
        ("e\u0301", [1], "U8", b"\3"),
        ("É", [1], "U8", b"\4"),
        (" ", [1], "U8", b"\5"),
        ("a/../b\n\t\\", [1], "U8", b"\6"),
        ("\ufeff ", [1], "U8", b"\x08"),
        ("__proto__", [1], "U8", b"\7"),
    )
    names.aliases = {"constructor": "__proto__", "z": " ", "toString": "é"}
    yield Valid(
        "names",
        "4",
        "the longest name, names apart by normalisation or case only, names with a meaning elsewhere",
        names,
    )
    tied = packed([4, 6], [[sign_form(1)]], seed=80)
    tied.aliases = {"lm_head.weight": "w", "again": "w"}
    yield Valid("tied", "4.4", "two more names of one packed tensor", tied, prefixes=[3])


def _long(text: bytes) -> bytes:
    return b"\xdb" + struct.pack(">I", len(text)) + text


def attachments() -> Iterator[Valid]:
    """§4.5."""
    several = smallest()
    several.inline = {"config.json": b'{"model_type": "none"}', "empty": b""}
    several.external = [
        External("tokenizer.json", VOCABULARY),
        External("tokenizer/vocab.json", VOCABULARY, "zstd"),
        External("nothing", b"", "zstd"),
        External("nothing, with its checksum", b"", "zstd", NOTHING_CHECKED),
        External("nothing, in three blocks", b"", "zstd", ZSTD_MAGIC + b"\x20\x00" + bytes(6) + b"\x01\0\0"),
        External("ü/..a/…", b"x"),
    ]
    yield Valid("attachments", "4.5", "in the head and outside, compressed and not, of no bytes, in folders", several)
    order = smallest()
    order.external = [External("z", b"1"), External("a", b"22")]
    order.inline = {"m": b"3"}
    order.change_meta = lambda meta: meta["attachments"].append(meta["attachments"].pop(0))
    yield Valid("attachments-in-any-order", "4.5", "inline after external, names not sorted", order)
    code = smallest()
    config = {"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}
    code.inline = {"config.json": json.dumps(config).encode(), "evil.py": b"raise SystemExit('never run')\n"}
    shows = "a configuration that asks for code of its own: bytes to a reader, which runs none of it"
    yield Valid("config-that-asks-for-code", "12", shows, code)


def frames() -> Iterator[Valid]:
    """§8.3."""
    size = struct.pack("<I", len(MASK))
    blocks = frame_blocks(MASK)
    made = {
        "single-segment": (ZSTD_MAGIC + frame_header(len(MASK)) + blocks, "content size in two bytes"),
        "size-of-eight-bytes": (
            ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", len(MASK)) + blocks,
            "the widest content size",
        ),
        "smallest-window": (ZSTD_MAGIC + b"\x80\x00" + size + blocks, "a window of 1 KiB"),
        "window-log-31": (ZSTD_MAGIC + b"\x80\xa8" + size + blocks, "the largest window"),
        "window-log-31-and-seven-eighths": (ZSTD_MAGIC + b"\x80\xaf" + size + blocks, "the largest mantissa too"),
        "dictionary-id-zero": (ZSTD_MAGIC + b"\xa3" + bytes(4) + size + blocks, "a dictionary id of 0 means none"),
        "many-blocks": (ZSTD_MAGIC + frame_header(len(MASK)) + frame_blocks(MASK, 7), "15 raw blocks"),
        "empty-blocks": (ZSTD_MAGIC + frame_header(len(MASK)) + bytes(6) + blocks, "blocks of no bytes first"),
        "unused-bit": (ZSTD_MAGIC + b"\xb0" + size + blocks, "the bit of the descriptor that decoders ignore"),
    }
    for name, (data, shows) in made.items():
        file = sample()
        file.blocks[1].stored_data = data
        yield Valid(f"frame-{name}", "8.3", shows, file)
    for path in sorted(FRAMES.glob("*.zst")):
        file = raw_file(("texture", [len(TEXTURE)], "U8", TEXTURE))
        file.forms[0] = {"kind": "raw", "codec": "zstd"}
        file.blocks[0].stored_data = path.read_bytes()
        yield Valid(f"frame-real-{path.stem}", "8.3", "a frame that a real encoder made", file)
    runs = sample()
    runs.blocks[1] = Block(1, 0, 1, bytes(100))
    yield Valid("frame-run-length", "8.3", "one run-length block", runs)
    codec = packed(
        [9, 20],
        [[sign_form(2, codec="zstd"), {"kind": "plane", "codec": "zstd"}, {"kind": "sparse", "codec": "zstd"}]],
        seed=81,
    )
    yield Valid(
        "codec-zstd-of-every-block", "8.3", "blocks of signs, planes and entries compressed", codec, prefixes=[3, 4]
    )


def prefixes() -> Iterator[Valid]:
    """§2: prefix files, all of the root of the whole one."""
    for held in (4, 5, 7, 9):
        file = sample()
        file.present = held
        yield Valid(f"prefix-of-{held}-blocks", "2", f"the first {held} of 10 blocks", file, prefixes=[4])
    lone = packed([4, 4], [[], []], seed=82, group_rows=2)
    lone.blocks.append(Block(2, 0, 1, packed([2, 4], [[sign_form(1)]], seed=83).blocks[2].data, 1.0))
    lone.forms.append(sign_form(1))
    lone.present = 2
    yield Valid("prefix-without-any-level", "2", "what is required, and nothing else", lone)


def versions() -> Iterator[Valid]:
    """§3: what a reader of 1.0 does with a file of a later minor version."""
    for minor in (1, 65535):
        file = sample()
        file.head["minor"] = minor
        yield Valid(f"minor-{minor}", "3", "a later minor version is no reason to refuse a file", file)
    may = sample()
    may.head["may"] = (1 << 64) - 1
    may.extra = {"bstk.announced": {"by": "a bit that may be ignored"}}
    yield Valid("may-bits-unknown", "3", "bits that may be ignored are, and so is what they announce in extra", may)
    later = sample()
    later.head |= {"minor": 7, "may": 1 << 17}
    later.extra = {"bstk.kernel-hints": [1, 2, 3]}
    yield Valid("minor-7-with-hints", "3", "a file of 1.7 that uses what a reader of 1.0 may leave aside", later)
    unused = sample()
    unused.head["minor"] = 2
    yield Valid("minor-2-without-additions", "3", "a file of 1.2 that uses none of its additions sets no bit", unused)


def writers() -> Iterator[Valid]:
    """Rules that bind writers only: a reader does not refuse what breaks them (§1)."""
    broken = sample()
    broken.blocks[0].worth = 3.5
    yield Valid("writer-worth-of-a-raw-block", "5", "a raw block of worth 3.5", broken)
    rising = sample()
    for i, block in enumerate(rising.blocks[4:]):
        block.worth = float(i)
    yield Valid("writer-worth-rises", "5", "the order of the file is kept, whatever the worth", rising)
    forms = sample()
    forms.forms += [forms.forms[4], sign_form(4096)]
    forms.blocks[7].form = 7
    yield Valid("writer-forms-twice-and-unused", "4.3", "a form that stands twice, and one that no block uses", forms)
    scales = sample()
    scales.blocks[2].data = f32(-1.0, 0.0, 2.0)
    scales.aliases = {"rows": "w.rows"}
    yield Valid("writer-scales", "4.2", "scales of zero and below, and an alias of a scale vector", scales)
    cases = smallest()
    cases.inline = {"A": b"1", "a": b"2", "a/b": b"3"}
    yield Valid(
        "writer-attachment-names", "4.5", "names apart by case only, and one that is a folder of another", cases
    )
    point = sample()
    point.curves[0]["points"] = [[1, 3.0]]
    yield Valid("writer-point-below-the-required", "4.6", "a point of fewer blocks than are required", point)
