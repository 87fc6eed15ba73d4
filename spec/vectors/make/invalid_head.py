"""Invalid vectors of the superblock, of versions, prefixes, and the frames of both sections (§2, §3, §8.3)."""

import struct
from collections.abc import Callable
from typing import Any

from .bits import ZSTD_MAGIC, frame, frame_blocks, frame_header
from .file import File
from .samples import framed, sample
from .vector import Change, Invalid, Refusals


def head(**values: Any) -> Change:
    """Other values in the superblock, the root computed over them."""
    return lambda file: file.head.update(values)


def after(change: Callable[[bytes], bytes]) -> Change:
    """A change of the finished bytes, which no digest knows of."""
    return lambda file: change(file.seal())


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """``data`` with ``new`` at ``at``."""
    return data[:at] + new + data[at + len(new) :]


def superblock() -> list[Invalid]:
    """§2, §3 and steps 1 to 7 of §7.1."""
    r = Refusals(sample)
    r.each(
        "bad-transfer",
        "2",
        "transfer",
        seven_bit=after(lambda d: bytes([d[0] & 0x7F]) + d[1:]),
        crlf_to_lf=after(lambda d: d.replace(b"\r\n", b"\n")),
        lf_to_crlf=after(lambda d: d.replace(b"\n", b"\r\n")),
        latin_1_to_utf_8=after(lambda d: d.decode("latin-1").encode()),
        replacement_characters=after(lambda d: d.decode(errors="replace").encode()),
        first_byte_lost=after(lambda d: d[1:]),
    )
    r.each(
        "not-bstk",
        "2",
        "other-file",
        gguf=lambda f: b"GGUF" + bytes(300),
        zeros=lambda f: bytes(300),
        html=lambda f: b"<!doctype html>" * 20,
        one_byte=lambda f: b"x",
        name_ends_after_byte_six=lambda f: b"1234BSTK" + bytes(300),
    )
    r.each(
        "truncated",
        "7.1",
        "cut",
        empty=lambda f: b"",
        in_the_magic=after(lambda d: d[:9]),
        in_the_superblock=after(lambda d: d[:127]),
        in_the_head=after(lambda d: d[:200]),
        in_the_attachments=after(lambda d: d[: int.from_bytes(d[32:40], "little") + 900]),
        in_the_last_block=after(lambda d: d[:-1]),
        exabyte_declared=head(file_length=1 << 60, present_length=1 << 60),
        largest_length_declared=head(file_length=1 << 62, present_length=1 << 62),
    )
    r.each("trailing-bytes", "7.1", "after", a_byte=after(lambda d: d + b"\0"), the_file_again=after(lambda d: d * 2))
    r.each(
        "version-unsupported",
        "3",
        "major",
        zero=head(major=0),
        two=head(major=2),
        last=head(major=0xFFFF),
        two_with_everything_else_unknown=after(lambda d: d[:10] + b"\2\0" + b"\xff" * (len(d) - 12)),
    )
    r.each(
        "feature-unsupported",
        "3",
        "must",
        bit_63=head(must=1 << 63),
        several=head(must=1 << 63 | 3),
        with_lengths_unknown=head(must=1 << 63, metadata_stored=(1 << 64) - 1),
    )
    r.each("feature-unsupported", "3", "must", unless="volumes", volumes=head(must=1))
    r.each("feature-unsupported", "3", "must", unless="base-model", base_model=head(must=2))
    r.each(
        "superblock-invalid",
        "2",
        "superblock",
        size_zero=head(superblock_size=0),
        size_256=head(superblock_size=256),
        reserved_low=head(reserved=1),
        reserved_high=head(reserved=1 << 63),
        file_length_zero=head(file_length=0),
        file_length_beyond_the_limit=head(file_length=(1 << 62) + 1, present_length=(1 << 62) + 1),
        file_length_largest=head(file_length=(1 << 64) - 1),
        file_ends_in_the_head=head(file_length=128, present_length=128),
        metadata_length_beyond_the_limit=head(metadata_length=(1 << 25) + 1),
        metadata_length_exabyte=head(metadata_length=1 << 60),
        metadata_bomb=lambda f: head(metadata_length=256 * len(f.seal()) + (1 << 16))(f),
        metadata_stored_largest=head(metadata_stored=(1 << 64) - 1),
        metadata_stored_beyond_the_file=head(metadata_stored=1 << 24),
        index_length_beyond_the_limit=head(index_length=(1 << 30) + 1),
        index_length_exabyte=head(index_length=1 << 60),
        index_stored_largest=head(index_stored=(1 << 64) - 1),
        index_stored_beyond_the_file=head(index_stored=1 << 29),
        sum_wraps_at_64_bits=head(attachments_length=(1 << 64) - 128),
        sections_wrap_together=head(metadata_stored=1 << 63, index_stored=1 << 63),
        attachments_beyond_the_file=head(attachments_length=1 << 40),
        present_beyond_the_file=lambda f: head(present_length=len(f.seal()) + 64)(f),
        present_largest=head(present_length=(1 << 64) - 1),
        present_zero=head(present_length=0),
        present_in_the_head=head(present_length=200),
    )
    r.each(
        "superblock-invalid",
        "2",
        "prefix",
        within_a_block=lambda f: prefix(f, lambda ends: ends[7] - 1),
        after_padding=lambda f: prefix(f, lambda ends: ends[7] // 64 * 64 + 64),
        without_a_required_block=lambda f: prefix(f, lambda ends: ends[2]),
        without_any_block=lambda f: prefix(f, lambda ends: ends[-1]),
        within_the_attachments=lambda f: prefix(f, lambda ends: ends[-1] - 60),
    )
    r.each(
        "head-digest",
        "2",
        "root",
        zero=head(root=bytes(32)),
        one_bit=after(lambda d: patched(d, 96, bytes([d[96] ^ 1]))),
        may_bit_set_later=after(lambda d: patched(d, 24, b"\1")),
        minor_set_later=after(lambda d: patched(d, 12, b"\1")),
        metadata_changed=after(lambda d: patched(d, 200, bytes([d[200] ^ 4]))),
        index_changed=after(lambda d: patched(d, _index_end(d) - 1, bytes([d[_index_end(d) - 1] ^ 4]))),
        metadata_bomb_unsealed=after(lambda d: patched(d, 40, struct.pack("<Q", 1 << 16))),
    )
    good = sample().seal()[96:128].hex()
    r.asked("root-mismatch", "7.1", "root-of-another-file", {"root": "00" * 32}, opens=False)
    r.asked("root-mismatch", "7.1", "root-cut-short", {"root": good[:-2]}, opens=False)
    r.asked("root-mismatch", "7.1", "root-of-no-digits", {"root": "z" * 64}, opens=False)
    return list(r)


def _index_end(data: bytes) -> int:
    return 128 + int.from_bytes(data[32:40], "little") + int.from_bytes(data[48:56], "little")


def prefix(file: File, cut: Callable[[list[int]], int]) -> bytes:
    """A prefix file that ends where ``cut`` says, given the ends of the blocks and then ``blocks_offset``."""
    whole = file.seal()
    first = len(whole) - file.offsets()[-1] - len(file.blocks[-1].data)
    ends = [first + o + len(file.stored(b)) for o, b in zip(file.offsets(), file.blocks, strict=True)]
    end = cut([*ends, first])
    return patched(whole, 80, struct.pack("<Q", end))[:end]


# --- frames ---------------------------------------------------------------------------------------------------------


def with_size(data: bytes, declared: int) -> bytes:
    """A frame that declares another content size than it has."""
    return ZSTD_MAGIC + frame_header(declared) + frame_blocks(data)


#: What is no frame of §8.3 of the declared length. The content is at least 80 bytes.
FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "not_compressed": lambda data: data,
    "zeros": lambda data: bytes(20),
    "magic_alone": lambda data: ZSTD_MAGIC,
    "cut": lambda data: frame(data)[:-1],
    "byte_after": lambda data: frame(data) + b"\0",
    "second_frame": lambda data: frame(data) + frame(data),
    "empty_frame_after": lambda data: frame(data) + frame(b""),
    "skippable_frame_first": lambda data: struct.pack("<II", 0x184D2A50, 4) + b"skip" + frame(data),
    "skippable_frame_after": lambda data: frame(data) + struct.pack("<II", 0x184D2A50, 4) + b"skip",
    "two_halves": lambda data: frame(data[:50]) + frame(data[50:]),
    "without_size": lambda data: ZSTD_MAGIC + b"\x00\x58" + frame_blocks(data),
    "one_byte_less": lambda data: frame(data[:-1]),
    "one_byte_more": lambda data: frame(data + b"\0"),
    "declares_less": lambda data: with_size(data + bytes(1 << 10), len(data)),
    "declares_more": lambda data: with_size(data[:-1], len(data)),
    "declares_an_exabyte": lambda data: ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", 1 << 60) + frame_blocks(data),
    "bomb": lambda data: with_size(b"", len(data))[:-3] + (1 << 20 << 3 | 3).to_bytes(3, "little") + b"\0",
    "dictionary": lambda data: ZSTD_MAGIC + b"\xa1\x07" + struct.pack("<I", len(data)) + frame_blocks(data),
    "checksum_wrong": lambda data: ZSTD_MAGIC + b"\xa4" + struct.pack("<I", len(data)) + frame_blocks(data) + b"sum?",
    "checksum_missing": lambda data: ZSTD_MAGIC + b"\xa4" + struct.pack("<I", len(data)) + frame_blocks(data),
    "reserved_bit": lambda data: ZSTD_MAGIC + b"\xa8" + struct.pack("<I", len(data)) + frame_blocks(data),
    "reserved_block": lambda data: with_size(b"", len(data))[:-3] + (len(data) << 3 | 7).to_bytes(3, "little") + data,
    "no_last_block": lambda data: ZSTD_MAGIC + frame_header(len(data)) + (len(data) << 3).to_bytes(3, "little") + data,
    "compressed_block_of_noise": lambda data: (
        with_size(b"", len(data))[:-3] + (len(data) << 3 | 5).to_bytes(3, "little") + data
    ),
    "window_log_of_32": lambda data: ZSTD_MAGIC + b"\x80\xb0" + struct.pack("<I", len(data)) + frame_blocks(data),
}


def sections() -> list[Invalid]:
    """§8.3 in the metadata and in the index."""
    r = Refusals(framed)
    for name, make in FRAMES.items():
        r.each("metadata-compression", "8.3", "metadata-frame", **{name: _set(metadata_frame=make)})
        r.each("index-compression", "8.3", "index-frame", **{name: _set(index_frame=make)})
    r.each("metadata-compression", "8.3", "metadata-frame", empty=_set(metadata_frame=lambda data: b""))
    r.each("index-compression", "8.3", "index-frame", empty=_set(index_frame=lambda data: b""))
    return list(r)


def _set(**values: Any) -> Change:
    return lambda file: [setattr(file, name, value) for name, value in values.items()]
