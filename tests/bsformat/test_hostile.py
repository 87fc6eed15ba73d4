"""Files that break one rule each, otherwise sound and rightly sealed: each is refused by the name of its cause.

The files are kept as the code that builds them (see `encoder`). Every one of them must also be refused without
allocating more than its own size allows.
"""

import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import msgpack
import pytest
import zstandard

import bsformat
from bsformat.errors import FormatError, UnsupportedError
from tests.bsformat.conftest import first_problem
from tests.bsformat.encoder import (
    LEVEL_0,
    LEVEL_1,
    LOWRANK,
    LOWRANK_FORM,
    PLANE,
    PLANE_FORM,
    SPARSE,
    SPARSE_FORM,
    Block,
    Image,
    M,
    N,
    digest,
    floats,
    halves,
    mixed,
    sample,
    sparse,
    zstd,
)

#: The most that refusing any of these files may allocate, bytes.
ALLOCATION = 1 << 20

Build = Callable[[Image], bytes | None]


@dataclass(frozen=True)
class Case:
    """A hostile file: ``build`` changes a sample, or returns other bytes altogether."""

    name: str
    reason: str
    says: str
    build: Build

    def data(self) -> bytes:
        image = sample()
        data = self.build(image)
        return image.seal() if data is None else data


CASES: list[Case] = []


def refused(reason: str, says: str = "") -> Callable[[Build], Build]:
    """Register a hostile file, the reason for which it is refused, and a text that the message must have."""

    def add(build: Build) -> Build:
        CASES.append(Case(build.__name__, reason, says, build))
        return build

    return add


def each(reason: str, what: str, **variants: Build) -> None:
    """Register several files that break the same rule."""
    CASES.extend(Case(f"{what}_{name}", reason, "", build) for name, build in variants.items())


def set_head(**values: int | bytes) -> Build:
    return lambda image: image.superblock.update(values)


def set_meta(*path: str | int, to: object) -> Build:
    """Replace one value deep in the metadata."""

    def build(image: Image) -> None:
        at = image.meta
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return build


def del_meta(*path: str | int) -> Build:
    """Remove one key from the metadata."""

    def build(image: Image) -> None:
        at = image.meta
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    return build


def set_block(number: int, **values: object) -> Build:
    """Replace values of one row of the index, or the stored bytes."""

    def build(image: Image) -> None:
        for name, value in values.items():
            setattr(image.blocks[number], name, value)

    return build


def raw_metadata(data: bytes) -> Build:
    """Replace the decoded metadata."""
    return lambda image: setattr(image, "metadata", data)


def spliced(key: str, value: bytes) -> Build:
    """Replace the value of one key of the outermost map by bytes that need not be sound MessagePack."""

    def build(image: Image) -> None:
        image.metadata = bytes([0x80 | len(image.meta)]) + b"".join(
            msgpack.packb(name) + (value if name == key else msgpack.packb(item))
            for name, item in image._filled_meta().items()
        )

    return build


# --- the superblock -------------------------------------------------------------------------------------------------

each(
    "bad-transfer",
    "transfer",
    seven_bit=lambda image: bytes([image.seal()[0] & 0x7F]) + image.seal()[1:],
    lone_lf=lambda image: image.seal().replace(b"\r\n", b"\n"),
    crlf=lambda image: image.seal().replace(b"\n", b"\r\n"),
    as_latin_1_text=lambda image: image.seal().decode("latin-1").encode(),
    as_utf_8_text=lambda image: image.seal().decode(errors="replace").encode(),
    dropped_high_byte=lambda image: image.seal()[1:],
)
each(
    "not-bstk",
    "other_file",
    gguf=lambda image: b"GGUF" + bytes(300),
    zeros=lambda image: bytes(300),
    html=lambda image: b"<!doctype html>" * 20,
    one_byte=lambda image: b"x",
)
each(
    "truncated",
    "cut",
    empty=lambda image: b"",
    in_the_magic=lambda image: image.seal()[:9],
    in_the_superblock=lambda image: image.seal()[:127],
    in_the_head=lambda image: image.seal()[:200],
    last_byte=lambda image: image.seal()[:-1],
    declares_an_exabyte=set_head(file_length=1 << 60, present_length=1 << 60),
    declares_the_most=set_head(file_length=1 << 62, present_length=1 << 62),
)
each("trailing-bytes", "more", byte=lambda image: image.seal() + b"\0", file=lambda image: image.seal() * 2)
each("version-unsupported", "major", older=set_head(major=0), newer=set_head(major=2), last=set_head(major=0xFFFF))


@refused("version-unsupported", says="2.7")
def names_the_version(image: Image) -> None:
    image.superblock |= {"major": 2, "minor": 7}


@refused("feature-unsupported", says="base-model")
def feature_base_model(image: Image) -> None:
    image.superblock["must"] = 2


@refused("feature-unsupported", says="base-model, bit 63")
def feature_without_a_name(image: Image) -> None:
    image.superblock["must"] = 1 << 63 | 2


each(
    "superblock-invalid",
    "superblock",
    size_zero=set_head(size=0),
    size_256=set_head(size=256),
    reserved=set_head(reserved=1),
    reserved_high=set_head(reserved=1 << 63),
    file_beyond_the_limit=set_head(file_length=(1 << 62) + 1, present_length=(1 << 62) + 1),
    file_max=set_head(file_length=(1 << 64) - 1),
    file_zero=set_head(file_length=0),
    file_ends_in_the_head=set_head(file_length=128, present_length=128),
    metadata_decodes_too_large=set_head(metadata_length=(1 << 25) + 1),
    metadata_decodes_to_an_exabyte=set_head(metadata_length=1 << 60),
    metadata_bomb=lambda image: image.superblock.update(metadata_length=256 * len(image.seal()) + (1 << 16)),
    metadata_stored_max=set_head(metadata_stored=(1 << 64) - 1),
    metadata_stored_beyond_the_file=set_head(metadata_stored=1 << 24),
    index_decodes_too_large=set_head(index_length=(1 << 30) + 1),
    index_decodes_to_an_exabyte=set_head(index_length=1 << 60),
    index_stored_max=set_head(index_stored=(1 << 64) - 1),
    index_stored_beyond_the_file=set_head(index_stored=1 << 29),
    sum_wraps_at_64_bits=set_head(attachments_length=(1 << 64) - 128),
    attachments_beyond_the_file=set_head(attachments_length=1 << 40),
    present_beyond_the_file=lambda image: image.superblock.update(present_length=len(image.seal()) + 64),
    present_max=set_head(present_length=(1 << 64) - 1),
    present_zero=set_head(present_length=0),
    present_in_the_head=set_head(present_length=200),
)


def prefix_of(cut: Callable[[Image, bytes], int]) -> Build:
    """A prefix file that ends at ``cut``."""

    def build(image: Image) -> bytes:
        whole = image.seal()
        image.superblock["present_length"] = cut(image, whole)
        return image.seal()[: image.superblock["present_length"]]

    return build


each(
    "superblock-invalid",
    "prefix",
    within_a_block=prefix_of(lambda image, whole: len(whole) - 1),
    without_the_required=prefix_of(lambda image, whole: len(whole) // 64 * 64 - 4 * 64 + 20),
    within_the_attachments=prefix_of(lambda image, whole: len(whole) - 6 * 64 - 100),
)
each(
    "head-digest",
    "root",
    zero=set_head(root=bytes(32)),
    one_bit=lambda image: set_head(root=bytes([image.seal()[96] ^ 1]) + image.seal()[97:128])(image),
    may_bit_set_later=lambda image: image.seal()[:24] + b"\1" + image.seal()[25:],
    minor_set_later=lambda image: image.seal()[:12] + b"\1" + image.seal()[13:],
)

# --- compression of the two sections --------------------------------------------------------------------------------


def lying_frame(content: bytes, declared: int) -> bytes:
    """A frame whose header declares another length than it decodes to."""
    frame = bytearray(zstandard.ZstdCompressor(level=1, write_checksum=False).compress(content))
    frame[4] = 0b10100000  # single segment, four bytes of content size, no checksum, no dictionary
    header = zstandard.frame_header_size(bytes(zstd(content)))
    return bytes(frame[:5]) + struct.pack("<I", declared) + zstd(content)[header:]


def without_size(content: bytes) -> bytes:
    return zstd(content, write_content_size=False)


def with_dictionary(content: bytes) -> bytes:
    samples = [bytes([i, j]) * 40 + content[:64] for i in range(40) for j in range(40)]
    dictionary = zstandard.train_dictionary(4096, samples)
    return zstandard.ZstdCompressor(level=9, dict_data=dictionary, write_checksum=False).compress(content)


def with_checksum_wrong(content: bytes) -> bytes:
    frame = bytearray(zstd(content, write_checksum=True))
    frame[-1] ^= 1
    return bytes(frame)


FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "not_compressed": lambda content: content,
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(20),
    "cut": lambda content: zstd(content)[:-1],
    "byte_after": lambda content: zstd(content) + b"\0",
    "second_frame": lambda content: zstd(content) + zstd(content),
    "empty_frame_after": lambda content: zstd(content) + zstd(b""),
    "skippable_frame_first": lambda content: struct.pack("<II", 0x184D2A50, 4) + b"skip" + zstd(content),
    "skippable_frame_after": lambda content: zstd(content) + struct.pack("<II", 0x184D2A50, 4) + b"skip",
    "two_halves": lambda content: zstd(content[:10]) + zstd(content[10:]),
    "without_size": without_size,
    "one_byte_less": lambda content: zstd(content[:-1]),
    "one_byte_more": lambda content: zstd(content + b"\0"),
    "declares_less_than_it_holds": lambda content: lying_frame(content + bytes(1 << 20), len(content)),
    "declares_more_than_it_holds": lambda content: lying_frame(content[:-1], len(content)),
    "dictionary": with_dictionary,
    "checksum_wrong": with_checksum_wrong,
    "reserved_bit": lambda content: zstd(content)[:4] + bytes([zstd(content)[4] | 8]) + zstd(content)[5:],
}


def section(name: str, frame: Callable[[bytes], bytes]) -> Build:
    """Store one section of the head as ``frame`` makes it."""

    def build(image: Image) -> None:
        whole = sample()
        parts = whole.seal()
        middle = 128 + struct.unpack_from("<Q", parts, 32)[0]
        end = middle + struct.unpack_from("<Q", parts, 48)[0]
        stored = parts[128:middle] if name == "metadata" else parts[middle:end]
        content = zstandard.ZstdDecompressor().decompress(stored)
        setattr(image, name, content)
        setattr(image, f"{name}_stored", frame(content))

    return build


for _name, _frame in FRAMES.items():
    each("metadata-compression", "metadata_frame", **{_name: section("metadata", _frame)})
    each("index-compression", "index_frame", **{_name: section("index", _frame)})

# --- MessagePack ----------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """``depth`` lists in each other."""
    return b"\x91" * (depth - 1) + b"\x90"


each(
    "metadata-msgpack",
    "msgpack",
    empty=raw_metadata(b""),
    never_used_byte=raw_metadata(b"\xc1"),
    a_list=raw_metadata(b"\x90"),
    a_number=raw_metadata(b"\x01"),
    two_maps=lambda image: raw_metadata(msgpack.packb(image._filled_meta()) + b"\x80")(image),
    byte_after=lambda image: raw_metadata(msgpack.packb(image._filled_meta()) + b"\0")(image),
    cut=lambda image: raw_metadata(msgpack.packb(image._filled_meta())[:-1])(image),
    declares_a_huge_list=spliced("extra", b"\xdd\xff\xff\xff\xff"),
    declares_a_huge_map=spliced("extra", b"\xdf\xff\xff\xff\xff"),
    declares_a_huge_text=spliced("extra", b"\xdb\xff\xff\xff\xff"),
    declares_huge_bytes=spliced("extra", b"\xc6\xff\xff\xff\xff"),
    extension=spliced("extra", b"\x81\xa1a" + msgpack.packb(msgpack.ExtType(5, b"x"))),
    timestamp=spliced("extra", b"\x81\xa1a" + msgpack.packb(msgpack.Timestamp(1))),
    timestamp_malformed=spliced("extra", b"\x81\xa1a\xd4\xff\x00"),
    duplicate_key=spliced("extra", b"\x82\xa1a\x01\xa1a\x02"),
    duplicate_key_of_two_encodings=spliced("extra", b"\x82\xa1a\x01\xd9\x01a\x02"),
    duplicate_key_in_a_tensor=spliced("tensors", b"\x91\x82\xa4name\xa1a\xa4name\xa1b"),
    integer_key=spliced("extra", b"\x81\x01\x01"),
    bytes_key=spliced("extra", b"\x81\xc4\x01a\x01"),
    list_key=spliced("extra", b"\x81\x91\x01\x01"),
    map_key=spliced("extra", b"\x81\x80\x01"),
    nil_key=spliced("extra", b"\x81\xc0\x01"),
    nan=spliced("extra", b"\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0"),
    infinity=spliced("extra", b"\x81\xa1a\xca\xff\x80\0\0"),
    utf8=spliced("writer", b"\xa1\xff"),
    utf8_surrogate=spliced("writer", b"\xa3\xed\xa0\x80"),
    utf8_overlong=spliced("writer", b"\xa2\xc0\x80"),
    utf8_in_a_key=spliced("extra", b"\x81\xa1\xff\x01"),
    deep=spliced("extra", b"\x81\xa1a" + nested(15)),
    very_deep=spliced("extra", b"\x81\xa1a" + nested(30000)),
    nan_in_a_curve=set_meta("curves", 0, "dense", to=float("nan")),
    infinite_point=set_meta("curves", 0, "points", to=[[1, float("inf")]]),
)

# --- the values of the metadata -------------------------------------------------------------------------------------

_KEYS: dict[str, tuple[tuple[str | int, ...], tuple[str, ...]]] = {
    "map": ((), ("writer", "tensors", "forms", "aliases", "attachments", "curves", "extra")),
    "raw_tensor": (("tensors", 0), ("name", "shape", "dtype")),
    "packed_tensor": (("tensors", 4), ("row_scale", "col_scale")),
    "form": (("forms", 2), ("kind", "codec", "rank", "factors")),
    "inline_attachment": (("attachments", 0), ("name", "length")),
    "attachment": (("attachments", 1), ("codec", "offset", "stored", "digest")),
    "curve": (("curves", 0), ("metric", "text", "tokens", "window", "dense", "points")),
}


def filled(build: Build) -> Build:
    """Fill in the attachments' records first, so that a key of theirs can be taken away for good."""

    def outer(image: Image) -> None:
        image.meta = image._filled_meta()
        build(image)
        image.metadata = msgpack.packb(image.meta)

    return outer


for _what, (_path, _names) in _KEYS.items():
    for _key in _names:
        each("metadata-key", f"lacks_{_what}", **{_key: filled(del_meta(*_path, _key))})
        # No key takes a boolean: where a number is due, True must not count as one.
        if (_what, _key) != ("inline_attachment", "length"):
            each("metadata-value", f"type_{_what}", **{_key: filled(set_meta(*_path, _key, to=True))})
    each("metadata-key", "unknown", **{_what: filled(set_meta(*_path, "colour", to=1))})
each(
    "metadata-key",
    "unknown",
    rank_of_a_raw_form=set_meta("forms", 0, "rank", to=1),
    scale_of_a_raw_tensor=set_meta("tensors", 0, "row_scale", to=0),
    transposed_raw_tensor=set_meta("tensors", 0, "transposed", to=True),
    codec_of_an_inline_attachment=set_meta("attachments", 0, "codec", to="none"),
)


def bad_tensor(**values: object) -> Build:
    return lambda image: image.meta["tensors"][4].update(values)


def bad_raw(**values: object) -> Build:
    return lambda image: image.meta["tensors"][0].update(values)


each(
    "metadata-value",
    "tensor",
    is_no_map=set_meta("tensors", 0, to="norm"),
    dimension_zero=bad_raw(shape=[0]),
    dimension_negative=bad_raw(shape=[-4]),
    dimension_two_negative=bad_raw(shape=[-2, -2]),
    dimension_too_large=bad_raw(shape=[1 << 40]),
    dimension_2_64=bad_raw(shape=[(1 << 64) - 1]),
    dimension_is_a_float=bad_raw(shape=[4.0]),
    dimension_is_a_bool=bad_raw(shape=[True]),
    nine_dimensions=bad_raw(shape=[1] * 9),
    product_overflows=bad_raw(shape=[1 << 32, 1 << 32]),
    product_overflows_to_zero=bad_raw(shape=[1 << 32, 1 << 32, 4]),
    product_of_eight=bad_raw(shape=[(1 << 40) - 1] * 8),
    dtype_unknown=bad_raw(dtype="F12"),
    dtype_lower_case=bad_raw(dtype="f32"),
    dtype_empty=bad_raw(dtype=""),
    packed_integers=bad_tensor(dtype="I32"),
    packed_vector=bad_tensor(shape=[30]),
    packed_scalar=bad_tensor(shape=[]),
    group_zero=bad_tensor(group_rows=0),
    group_negative=bad_tensor(group_rows=-1),
    group_larger_than_the_tensor=bad_tensor(group_rows=M + 1),
    group_huge=bad_tensor(group_rows=1 << 63),
    too_many_chains=bad_tensor(shape=[(1 << 22) + 1, 10], group_rows=1),
    transposed_vector=bad_tensor(shape=[30], transposed=True),
    transposed_stack_of_other_rows=bad_tensor(shape=[2, M, N], transposed=True),
    transposed_stack_of_columns=bad_tensor(shape=[1, N, M], transposed=True),
    transposed_is_a_number=bad_tensor(transposed=1),
    row_scale_missing=bad_tensor(row_scale=5),
    row_scale_negative=bad_tensor(row_scale=-1),
    row_scale_beyond=bad_tensor(row_scale=1 << 30),
    row_scale_is_itself=bad_tensor(row_scale=4),
    row_scale_of_another_shape=bad_tensor(row_scale=3),
    row_scale_of_integers=lambda image: image.meta["tensors"][2].update(dtype="I32"),
    row_scale_of_doubles=lambda image: image.meta["tensors"][2].update(dtype="F64"),
    col_scale_of_another_shape=bad_tensor(col_scale=2),
    col_scale_transposed=lambda image: image.meta["tensors"][3].update(shape=[N, 1]),
    col_scale_for_more_chains=lambda image: image.meta["tensors"][3].update(shape=[2, N]),
)


@refused("metadata-value", says="chains")
def chains_beyond_the_limit_in_sum(image: Image) -> None:
    image.meta["tensors"][2]["shape"] = [1 << 21]
    packed = image.meta["tensors"][4] | {"shape": [1 << 21, N], "group_rows": 1}
    image.meta["tensors"][4:] = [packed | {"name": f"w{i}"} for i in range(3)]
    image.meta["aliases"] = {}


each(
    "metadata-value",
    "form",
    is_no_map=set_meta("forms", 0, to=1),
    rank_zero=set_meta("forms", 2, "rank", to=0),
    rank_negative=set_meta("forms", 2, "rank", to=-1),
    rank_too_large=set_meta("forms", 2, "rank", to=4097),
    factors_unknown=set_meta("forms", 2, "factors", to="F32"),
    factors_empty=set_meta("forms", 2, "factors", to=""),
)
each(
    "metadata-value",
    "alias",
    of_nothing=set_meta("aliases", to={"a": "b"}),
    of_an_alias=set_meta("aliases", to={"a": "w.weight", "b": "a"}),
    of_a_number=set_meta("aliases", to={"a": 4}),
    of_a_list=set_meta("aliases", to={"a": ["w.weight"]}),
    of_itself=set_meta("aliases", to={"a": "a"}),
)
each(
    "metadata-value",
    "attachment",
    is_no_map=set_meta("attachments", 0, to=b""),
    inline_shorter=set_meta("attachments", 0, "length", to=3),
    inline_longer=set_meta("attachments", 0, "length", to=1),
    inline_text=set_meta("attachments", 0, "data", to="{}"),
    length_negative=set_meta("attachments", 1, "length", to=-1),
    length_huge=set_meta("attachments", 1, "length", to=1 << 60),
    length_is_not_what_is_stored=set_meta("attachments", 1, "length", to=321),
    stored_zero=set_meta("attachments", 1, "stored", to=0),
    stored_huge=set_meta("attachments", 1, "stored", to=1 << 60),
    offset_negative=set_meta("attachments", 1, "offset", to=-1),
    offset_huge=set_meta("attachments", 1, "offset", to=(1 << 64) - 1),
    digest_short=set_meta("attachments", 1, "digest", to=bytes(31)),
    digest_empty=set_meta("attachments", 1, "digest", to=b""),
    bomb=lambda image: image.meta["attachments"][1].update(codec="zstd", length=256 * 320 + (1 << 16) + 1),
)
each(
    "metadata-value",
    "curve",
    is_no_map=set_meta("curves", 0, to=[]),
    points_fall=set_meta("curves", 0, "points", to=[[6, 1.0], [4, 2.0]]),
    points_repeat=set_meta("curves", 0, "points", to=[[4, 1.0], [4, 2.0]]),
    point_of_three=set_meta("curves", 0, "points", to=[[4, 1.0, 2.0]]),
    point_of_text=set_meta("curves", 0, "points", to=[["4", 1.0]]),
    point_is_a_number=set_meta("curves", 0, "points", to=[4]),
    point_negative=set_meta("curves", 0, "points", to=[[-1, 1.0]]),
    point_huge=set_meta("curves", 0, "points", to=[[1 << 60, 1.0]]),
    value_is_a_bool=set_meta("curves", 0, "points", to=[[4, True]]),
    point_beyond_the_last_block=set_meta("curves", 0, "points", to=[[4, 1.0], [7, 2.0]]),
    tokens_negative=set_meta("curves", 0, "tokens", to=-1),
)
each(
    "metadata-name",
    "name",
    empty=bad_raw(name=""),
    nul=bad_raw(name="a\0b"),
    too_long=bad_raw(name="a" * 1025),
    too_long_in_bytes=bad_raw(name="é" * 513),
    writer_empty=set_meta("writer", to=""),
    metric_empty=set_meta("curves", 0, "metric", to=""),
    alias_empty=set_meta("aliases", to={"": "w.weight"}),
    alias_nul=set_meta("aliases", to={"\0": "w.weight"}),
    **{
        f"attachment_{i}": set_meta("attachments", 0, "name", to=name)
        for i, name in enumerate(
            [
                "",
                "..",
                ".",
                "../a",
                "a/../../b",
                "a/..",
                "/etc/passwd",
                "a//b",
                "a/",
                "./a",
                "C:a",
                "\\\\host\\a",
                "a\\b",
                "a\0",
            ]
        )
    },
)
each(
    "metadata-duplicate",
    "duplicate",
    tensor=bad_raw(name="mask"),
    alias_is_a_tensor=set_meta("aliases", to={"mask": "w.weight"}),
    attachment=set_meta("attachments", 1, "name", to="config.json"),
)


@refused("codec-unknown", says="'lz4'")
def codec_of_a_form(image: Image) -> None:
    image.meta["forms"][1]["codec"] = "lz4"


@refused("codec-unknown", says="'lz4'")
def codec_of_an_attachment(image: Image) -> None:
    image.meta["attachments"][1]["codec"] = "lz4"


@refused("kind-unknown", says="'ternary'")
def kind_of_a_form(image: Image) -> None:
    image.meta["forms"][2]["kind"] = "ternary"


# --- attachments ----------------------------------------------------------------------------------------------------

each(
    "attachment-offset",
    "attachment",
    hole=set_meta("attachments", 1, "offset", to=1),
    beyond_the_region=set_meta("attachments", 1, "offset", to=1 << 60),
    shorter_than_the_region=lambda image: image.attachments.append(b"more"),
    longer_than_the_region=lambda image: image.meta["attachments"][1].update(stored=321, length=321),
    overlap=lambda image: image.meta["attachments"].append(image._filled_meta()["attachments"][1] | {"name": "b"}),
    out_of_order=lambda image: (
        image.attachments.append(b"second"),
        image.meta["attachments"].append({"name": "b", "length": 6, "codec": "none"}),
        setattr(image, "meta", image._filled_meta()),
        image.meta["attachments"].reverse(),
        None,
    )[-1],
)


@refused("attachment-digest")
def attachment_of_other_bytes(image: Image) -> None:
    image.meta["attachments"][1]["digest"] = digest(b"other")


for _name, _frame in FRAMES.items():

    def _attachment(image: Image, frame: Callable[[bytes], bytes] = _frame) -> None:
        image.attachments = [frame(image.attachments[0])]
        image.meta["attachments"][1]["codec"] = "zstd"

    if _name != "empty":  # stored 0 is refused earlier
        each("attachment-codec", "attachment_frame", **{_name: _attachment})

# --- the index ------------------------------------------------------------------------------------------------------

each(
    "index-length",
    "index",
    empty=lambda image: setattr(image, "index", b""),
    half_a_header=lambda image: setattr(image, "index", bytes(15)),
    no_blocks=lambda image: setattr(image, "index", bytes(16)),
    a_row_too_few=lambda image: setattr(image, "rows", 5),
    a_row_too_many=lambda image: setattr(image, "rows", 7),
    count_max=lambda image: setattr(image, "rows", (1 << 64) - 1),
    count_wraps_to_what_is_there=lambda image: setattr(image, "rows", 6 + (1 << 63)),
    count_beyond_the_limit=lambda image: setattr(image, "rows", (1 << 22) + 1),
    byte_more=lambda image: setattr(image, "index", image._index([0] * 6) + b"\0"),
    byte_less=lambda image: setattr(image, "index", image._index([0] * 6)[:-1]),
    more_required_than_there_are=lambda image: setattr(image, "required", 7),
    required_max=lambda image: setattr(image, "required", (1 << 64) - 1),
)
each(
    "index-offset",
    "offset",
    first_not_at_zero=set_block(0, offset=64),
    hole=lambda image: image.gaps.update({3: 64}),
    unaligned=lambda image: image.gaps.update({3: 8}),
    overlap=set_block(4, offset=192),
    swapped=lambda image: (setattr(image.blocks[4], "offset", 384), setattr(image.blocks[5], "offset", 256), None)[-1],
    beyond_the_file=set_block(5, offset=1 << 40),
    wraps_to_its_place=lambda image: setattr(image.blocks[5], "offset", (1 << 64) - 64),
    max=set_block(5, offset=(1 << 64) - 1),
    stored_zero=set_block(5, stored=0),
    stored_longer=lambda image: setattr(image.blocks[5], "stored", len(LEVEL_1) + 1),
    stored_shorter=lambda image: setattr(image.blocks[5], "stored", len(LEVEL_1) - 1),
    stored_huge=set_block(5, stored=1 << 60),
    stored_wraps=set_block(5, stored=(1 << 64) - 1),
    length_zero=set_block(5, length=0),
    length_huge=set_block(5, length=1 << 60),
    length_max=set_block(5, length=(1 << 64) - 1),
    file_longer_than_the_last_block=lambda image: image.gaps.update({6: 1}),
    file_longer_by_an_alignment=lambda image: image.gaps.update({6: 64}),
    empty_block_between=lambda image: image.blocks.insert(4, Block(b"", 4, 0, 2)),
)
each(
    "index-chain",
    "chain",
    one_beyond=set_block(5, chain=5),
    max=set_block(5, chain=(1 << 32) - 1),
)
each(
    "index-form",
    "form",
    one_beyond=set_block(5, form=4),
    max=set_block(5, form=0xFFFF),
    raw_block_of_a_packed_tensor=set_block(5, form=0),
    sign_block_of_a_raw_tensor=set_block(0, form=2),
)
each(
    "index-worth",
    "worth",
    nan=set_block(4, worth=float("nan")),
    infinite=set_block(4, worth=float("inf")),
    negative=set_block(4, worth=-1.0),
)
each(
    "index-level",
    "level",
    starts_at_one=set_block(4, level=1),
    repeats=set_block(5, level=0),
    skips=set_block(5, level=2),
    max=set_block(5, level=0xFFFF),
    falls=lambda image: (setattr(image.blocks[4], "level", 1), setattr(image.blocks[5], "level", 0), None)[-1],
    second_block_of_a_raw_tensor=lambda image: image.blocks.append(Block(floats(1, 2, 3, 4), 0, 1, 0)),
    same_raw_block_twice=lambda image: image.blocks.insert(1, Block(floats(1, 2, 3, 4), 0, 0, 0)),
)
each(
    "index-missing",
    "missing",
    raw_block=lambda image: image.blocks.pop(0) and None,
    scale=lambda image: image.blocks.pop(2) and None,
)
each(
    "index-order",
    "order",
    raw_after_residual=lambda image: image.blocks.append(image.blocks.pop(0)),
    raw_not_required=lambda image: setattr(image, "required", 3),
    nothing_required=lambda image: setattr(image, "required", 0),
)
each(
    "index-block-length",
    "block_length",
    byte_more=set_block(5, data=LEVEL_1 + b"\0"),
    byte_less=set_block(5, data=LEVEL_1[:-1]),
    raw_byte_more=set_block(0, data=floats(1, 2, 3, 4) + b"\0"),
    of_the_other_form=set_block(4, form=3),
    decoded_of_an_uncompressed_block=set_block(5, data=LEVEL_1 + b"\0", length=len(LEVEL_1)),
    decoded_longer=set_block(1, length=401),
)


@refused("index-block-length", says="beyond the limit")
def bomb_declared_in_the_index(image: Image) -> None:
    image.meta["tensors"][1]["shape"] = [400, 1000]
    image.blocks[1].data = zstd(bytes(400_000))
    image.blocks[1].length = 400_000


# --- the blocks -----------------------------------------------------------------------------------------------------

each("block-digest", "digest", zero=set_block(4, digest=bytes(32)), of_the_next=set_block(4, digest=digest(LEVEL_1)))

for _name, _frame in FRAMES.items():

    def _block(image: Image, frame: Callable[[bytes], bytes] = _frame) -> None:
        image.blocks[1].data = frame(bytes(range(20)) * 20)

    if _name != "empty":  # stored 0 is refused earlier
        each("block-codec", "block_frame", **{_name: _block})


def with_bit(data: bytes, byte: int, bit: int) -> bytes:
    return data[:byte] + bytes([data[byte] | 1 << bit]) + data[byte + 1 :]


each(
    "block-padding",
    "padding_bit",
    **{
        f"row_{row}_bit_{bit}": set_block(4, data=with_bit(LEVEL_0, 2 * row + 1, bit))
        for row in range(M)
        for bit in range(N % 8, 8)
    },
)

_U0, _V0 = 2 * M, 2 * M + 2 * M
_U1, _V1, _S1 = 2 * M, 2 * M + 2 * M, 2 * M + 2 * M + 2 * N


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


each(
    "block-values",
    "value",
    u_nan=set_block(4, data=patched(LEVEL_0, _U0, halves(float("nan")))),
    u_infinite=set_block(4, data=patched(LEVEL_0, _U0 + 4, halves(float("inf")))),
    v_negative_infinite=set_block(4, data=patched(LEVEL_0, _V0 + 18, halves(float("-inf")))),
    u_e4m3_nan=set_block(5, data=patched(LEVEL_1, _U1, b"\x7f")),
    v_e4m3_negative_nan=set_block(5, data=patched(LEVEL_1, _V1 + 19, b"\xff")),
    scale_nan=set_block(5, data=patched(LEVEL_1, _S1, floats(float("nan")))),
    scale_infinite=set_block(5, data=patched(LEVEL_1, _S1 + 4, floats(float("inf")))),
    row_scale_signalling_nan=set_block(2, data=floats(1) + b"\x01\x00\xa0\x7f" + floats(1)),
    col_scale_signalling_nan=set_block(3, data=halves(*[1.0] * 9) + b"\x01\x7d"),
    u_signalling_nan=set_block(4, data=patched(LEVEL_0, _U0, b"\x01\x7d")),
    scale_signalling_nan=set_block(5, data=patched(LEVEL_1, _S1, b"\x01\x00\xa0\x7f")),
    row_scale_nan=set_block(2, data=floats(1, float("nan"), 1)),
    col_scale_infinite=set_block(3, data=halves(*[1.0] * 9, float("-inf"))),
)


# --- the other kinds of blocks: levels 2 to 5 of the only chain of `mixed` are plane, plane, sparse, lowrank ---------


def of_mixed(build: Build) -> Build:
    """The same for a file with a block of every kind."""

    def outer(_: Image) -> bytes:
        image = mixed()
        return build(image) or image.seal()

    return outer


def chain_of(*forms: int) -> Build:
    """A chain of blocks of these forms, each sound by itself."""
    data = {2: LEVEL_0, 3: LEVEL_1, PLANE_FORM: PLANE, SPARSE_FORM: SPARSE, LOWRANK_FORM: LOWRANK}

    def build(image: Image) -> None:
        image.meta["curves"] = []
        image.blocks[4:] = [Block(data[form], 4, level, form) for level, form in enumerate(forms)]

    return of_mixed(build)


def with_sparse(**parts: object) -> Build:
    return of_mixed(set_block(8, data=sparse(**parts)))  # type: ignore[arg-type]


each(
    "index-plane",
    "plane",
    alone=chain_of(PLANE_FORM),
    first=chain_of(PLANE_FORM, 2),
    after_sparse=chain_of(2, SPARSE_FORM, PLANE_FORM),
    after_plane_and_sparse=chain_of(2, PLANE_FORM, SPARSE_FORM, PLANE_FORM),
    after_lowrank=chain_of(2, LOWRANK_FORM, PLANE_FORM),
    sixteenth=chain_of(2, *[PLANE_FORM] * 16),
)
each(
    "index-form",
    "kinds",
    plane_of_a_raw_tensor=of_mixed(set_block(0, form=PLANE_FORM)),
    sparse_of_a_raw_tensor=of_mixed(set_block(0, form=SPARSE_FORM)),
    lowrank_of_a_raw_tensor=of_mixed(set_block(0, form=LOWRANK_FORM)),
)


@refused("index-form", says="at most 65536 columns")
def sparse_block_of_a_matrix_with_too_many_columns(image: Image) -> bytes:
    image = mixed()
    image.meta["curves"] = []
    image.meta["tensors"][3]["shape"] = [65537]
    image.meta["tensors"][4]["shape"] = [M, 65537]
    image.blocks[3:] = [Block(halves(*[1.0] * 65537), 3, 0, 0), Block(SPARSE, 4, 0, SPARSE_FORM)]
    return image.seal()


each(
    "index-block-length",
    "kinds",
    plane_byte_more=of_mixed(set_block(6, data=PLANE + b"\0")),
    plane_byte_less=of_mixed(set_block(6, data=PLANE[:-1])),
    plane_with_factors=of_mixed(set_block(6, data=LEVEL_0)),
    lowrank_byte_more=of_mixed(set_block(9, data=LOWRANK + b"\0")),
    lowrank_byte_less=of_mixed(set_block(9, data=LOWRANK[:-1])),
    lowrank_with_signs=of_mixed(set_block(9, data=LEVEL_0)),
    sparse_byte_more=of_mixed(set_block(8, data=SPARSE + b"\0")),
    sparse_two_bytes_more=of_mixed(set_block(8, data=SPARSE + b"\0\0")),
    sparse_byte_less=of_mixed(set_block(8, data=SPARSE[:-1])),
    sparse_without_entries=with_sparse(offsets=(0, 0, 0), columns=(), values=b""),
    sparse_shorter_than_its_rows=of_mixed(set_block(8, data=SPARSE[:10])),
    sparse_of_one_byte=of_mixed(set_block(8, data=b"\0")),
    sparse_with_more_entries_than_elements=with_sparse(columns=tuple(range(M * N + 1)), values=bytes(M * N + 1)),
)
each(
    "block-padding",
    "plane_padding",
    **{
        f"row_{row}_bit_{bit}": of_mixed(set_block(6, data=with_bit(PLANE, 2 * row + 1, bit)))
        for row in range(M)
        for bit in (2, 7)
    },
)
each(
    "block-rows",
    "sparse_rows",
    start_not_zero=with_sparse(starts=(1,)),
    start_huge=with_sparse(starts=((1 << 32) - 1,)),
    first_offset_not_zero=with_sparse(offsets=(1, 2, 2)),
    falls=with_sparse(offsets=(0, 2, 1)),
    beyond_the_entries=with_sparse(offsets=(0, 2, 4)),
    far_beyond_the_entries=with_sparse(offsets=(0, 2, 0xFFFF)),
)
each(
    "block-columns",
    "sparse_columns",
    repeated=with_sparse(columns=(3, 3, 0)),
    falls=with_sparse(columns=(9, 3, 0)),
    falls_in_the_last_row=with_sparse(offsets=(0, 0, 1), columns=(3, 9, 0)),
    one_beyond=with_sparse(columns=(3, N, 0)),
    last_beyond=with_sparse(columns=(3, 9, N)),
    max=with_sparse(columns=(3, 0xFFFF, 0)),
)
each(
    "block-values",
    "kinds",
    sparse_nan=with_sparse(values=b"\x38\x7f\x7e"),
    sparse_negative_nan=with_sparse(values=b"\xff\x38\x7e"),
    sparse_scale_nan=with_sparse(scale=float("nan")),
    sparse_scale_infinite=with_sparse(scale=float("-inf")),
    lowrank_u_nan=of_mixed(set_block(9, data=patched(LOWRANK, 0, halves(float("nan"))))),
    lowrank_v_infinite=of_mixed(set_block(9, data=patched(LOWRANK, 2 * M, halves(float("inf"))))),
)


def tall(starts: tuple[int, ...], offsets: dict[int, int]) -> Build:
    """A file of one sparse block of 130 rows, of three tiles, with an entry in each of rows 0, 64 and 129."""

    def build(image: Image) -> None:
        image.meta["curves"] = []
        image.meta["tensors"][2]["shape"] = [130]
        image.meta["tensors"][4] |= {"shape": [130, N], "group_rows": 130}
        image.blocks[2].data = floats(*[1.0] * 130)
        usual = {0: 0, 64: 0, 128: 0, 129: 0}
        placed = tuple((usual | offsets).get(row, 1) for row in range(130))
        image.blocks[4:] = [Block(sparse(starts=starts, offsets=placed), 4, 0, SPARSE_FORM)]

    return of_mixed(build)


each(
    "block-rows",
    "sparse_tiles",
    tile_begins_before_the_last=tall((0, 1, 0), {}),
    tile_begins_inside_the_last=tall((0, 0, 2), {}),
    tile_begins_beyond=tall((0, 1, 4), {}),
    first_row_of_a_tile_not_at_its_start=tall((0, 0, 2), {64: 1, **dict.fromkeys(range(65, 128), 2)}),
)


@refused("padding")
def padding_between_blocks(image: Image) -> bytes:
    data = bytearray(image.seal())
    data[-(len(LEVEL_1) + 1)] = 1
    return bytes(data)


@refused("padding")
def all_padding(image: Image) -> None:
    image.padding = b"\xff"


# --------------------------------------------------------------------------------------------------------------------


def test_the_sample_is_sound(sealed: bytes) -> None:
    assert first_problem(sealed) is None


@pytest.mark.parametrize(
    "build",
    [
        of_mixed(lambda image: None),
        chain_of(2, *[PLANE_FORM] * 15, 3, *[PLANE_FORM] * 15),
        chain_of(SPARSE_FORM, LOWRANK_FORM, 2, PLANE_FORM, SPARSE_FORM),
        with_sparse(scale=0.0, offsets=(0, 0, 0), columns=(0,), values=b"\0"),
        with_sparse(offsets=(0, N, 2 * N), columns=(*range(N),) * M, values=b"\x80" * (M * N)),
        tall((0, 1, 2), {129: 0}),
        tall((0, 1, 3), {}),
    ],
)
def test_what_every_kind_may_be_is_read(build: Build, image: Image) -> None:
    data = build(image)
    assert data is not None
    assert first_problem(data) is None


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 300


def _first_problem(data: bytes) -> tuple[Exception | None, int]:
    """What is wrong with a file first, and the most that was allocated on the way, bytes."""
    tracemalloc.start()
    try:
        return first_problem(data), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_refused(case: Case) -> None:
    data = case.data()
    error, peak = _first_problem(data)
    if peak >= ALLOCATION + 4 * len(data):  # a thread that another test left behind may have allocated meanwhile
        error, peak = _first_problem(data)
    assert isinstance(error, FormatError), error
    assert error.reason == case.reason, error
    assert case.says in str(error)
    assert str(error).startswith("a.bstk")
    assert "\n" not in str(error)
    assert len(str(error)) < 1000
    if case.reason.endswith(("-unknown", "-unsupported")):
        assert isinstance(error, UnsupportedError)
    assert peak < ALLOCATION + 4 * len(data)


def with_containers(image: Image, count: int) -> None:
    """Metadata of exactly so many maps and arrays, in an order that does not compress beyond the limit."""
    image.meta["extra"] = {"a": []}
    stack, own = [image._filled_meta()], 0
    while stack:
        value = stack.pop()
        if isinstance(value, (dict, list)):
            own += 1
            stack += value.values() if isinstance(value, dict) else value
    more = count - own
    noise = random.Random(0).randbytes(more)
    items = bytes(0x90 if byte & 1 else 0x80 for byte in noise)
    spliced("extra", b"\x81\xa1a\xdd" + struct.pack(">I", more) + items)(image)


def test_as_many_maps_and_arrays_as_are_allowed(image: Image) -> None:
    with_containers(image, 1 << 21)
    assert first_problem(image.seal()) is None


def test_one_map_or_array_more_than_is_allowed(image: Image) -> None:
    """Each costs a byte in the file, and a hundred in memory."""
    with_containers(image, (1 << 21) + 1)
    error = first_problem(image.seal())
    assert error is not None
    assert error.reason == "metadata-msgpack"
    assert "2097152 maps and arrays" in str(error)


@pytest.mark.parametrize("root", ["00" * 32, "", "nonsense", "ff" * 31])
def test_another_root_than_demanded(sealed: bytes, root: str) -> None:
    error = first_problem(sealed, root=root)
    assert isinstance(error, bsformat.errors.IntegrityError)
    assert error.reason == "root-mismatch"


def test_the_demanded_root_may_be_written_in_capitals(sealed: bytes) -> None:
    assert first_problem(sealed, root=sealed[96:128].hex().upper() + "\n") is None


def test_a_newer_minor_version_is_read(image: Image) -> None:
    image.superblock["minor"] = 41
    with bsformat.open(bsformat.MemorySource(image.seal())) as container:
        assert container.version == "1.41"
        assert bsformat.verify(container).ok


@pytest.mark.parametrize("bit", [0, 1, 31, 63])
def test_bits_that_may_be_ignored_are(image: Image, bit: int) -> None:
    image.superblock["may"] = 1 << bit
    assert first_problem(image.seal()) is None


def test_deepest_nesting_is_read(image: Image) -> None:
    spliced("extra", b"\x81\xa1a" + nested(14))(image)
    assert first_problem(image.seal()) is None


def test_longest_name_is_read(image: Image) -> None:
    image.meta["tensors"][0]["name"] = "a" * 1024
    assert first_problem(image.seal()) is None


LONG = random.Random(0).randbytes(50_000).hex()  # compressible text would be refused earlier


@pytest.mark.parametrize(
    ("reason", "build"),
    [
        ("codec-unknown", set_meta("forms", 1, "codec", to=LONG)),
        ("codec-unknown", set_meta("attachments", 1, "codec", to=LONG)),
        ("kind-unknown", set_meta("forms", 1, "kind", to="\n" + LONG)),
        ("metadata-value", set_meta("tensors", 0, "dtype", to=LONG)),
        ("metadata-value", set_meta("tensors", 0, "shape", to=list(LONG))),
        ("metadata-value", set_meta("forms", 2, "factors", to=LONG)),
        ("metadata-value", set_meta("aliases", to={"a": LONG})),
        ("metadata-value", set_meta("curves", 0, "points", to=[LONG])),
        ("metadata-key", set_meta(LONG, to=1)),
        ("metadata-msgpack", spliced("extra", b"\x82" + 2 * (msgpack.packb(LONG) + b"\x01"))),
        ("metadata-msgpack", spliced("extra", b"\x81" + msgpack.packb(LONG.encode()) + b"\x01")),
    ],
)
def test_a_message_stays_short_whatever_the_file_says(image: Image, reason: str, build: Build) -> None:
    build(image)
    error = first_problem(image.seal())
    assert isinstance(error, FormatError)
    assert error.reason == reason
    assert len(str(error)) < 1000
    assert "\n" not in str(error)
