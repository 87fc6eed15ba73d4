"""The smallest pieces: numbers, digests, MessagePack and zstd frames, made by hand so that every byte is chosen."""

import struct
from dataclasses import dataclass
from typing import Any

import blake3


def digest(data: bytes) -> bytes:
    """BLAKE3, 32 bytes."""
    return blake3.blake3(data).digest()


def align(offset: int) -> int:
    """The next multiple of 64."""
    return (offset + 63) // 64 * 64


def f32(*values: float) -> bytes:
    """binary32."""
    return struct.pack(f"<{len(values)}f", *values)


def f16(*values: float) -> bytes:
    """binary16."""
    return struct.pack(f"<{len(values)}e", *values)


def bf16(*values: float) -> bytes:
    """The upper halves of binary32; give values that BF16 holds."""
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def u16(*values: int) -> bytes:
    """Unsigned, 16 bits."""
    return struct.pack(f"<{len(values)}H", *values)


def u32(*values: int) -> bytes:
    """Unsigned, 32 bits."""
    return struct.pack(f"<{len(values)}I", *values)


class Noise:
    """Numbers that look random and are the same on every machine: a linear congruential generator of 64 bits."""

    def __init__(self, seed: int) -> None:
        self._state = seed * 0x9E3779B97F4A7C15 % (1 << 64)

    def bits(self, count: int) -> int:
        """The next ``count`` bits, at most 32."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return self._state >> (64 - count)

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        return bytes(self.bits(8) for _ in range(count))

    def halves(self, count: int) -> bytes:
        """Finite binary16 between −2 and 2, each of its own size."""
        return f16(*((self.bits(12) - 2048) / 1024 for _ in range(count)))

    def codes(self, count: int) -> bytes:
        """Finite e4m3 of sizes up to 16."""
        return bytes(self.bits(1) << 7 | (self.bits(7) % 0x58) for _ in range(count))

    def signs(self, rows: int, columns: int) -> bytes:
        """Rows of sign bits, the bits after the last column zero."""
        out = b""
        for _ in range(rows):
            row = bytearray(self.bytes((columns + 7) // 8))
            if columns % 8:
                row[-1] &= (1 << columns % 8) - 1
            out += bytes(row)
        return out


# --- MessagePack ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spliced:
    """Bytes that stand for a value as they are, whether they are sound MessagePack or not."""

    data: bytes


def pack(value: Any) -> bytes:
    """MessagePack in the shortest encoding; floats in 64 bits, keys in the order of the dict."""
    match value:
        case Spliced():
            return value.data
        case None | False | True:
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return _integer(value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            return _sized(value.encode(), 0xA0, 32, (0xD9, 0xDA, 0xDB))
        case bytes():
            return _sized(value, None, 0, (0xC4, 0xC5, 0xC6))
        case list() | tuple():
            return _count(len(value), 0x90, (0xDC, 0xDD)) + b"".join(map(pack, value))
        case dict():
            pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
            return _count(len(value), 0x80, (0xDE, 0xDF)) + pairs
    raise TypeError(f"no MessagePack for {value!r}")


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value) if value < 0 else bytes([value])
    for tag, code in ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")):
        if 0 <= value < 1 << 8 * struct.calcsize(code):
            return bytes([tag]) + struct.pack(code, value)
    for tag, code in ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q")):
        if value >= -(1 << 8 * struct.calcsize(code) - 1):
            return bytes([tag]) + struct.pack(code, value)
    raise ValueError(value)


def _sized(data: bytes, short: int | None, limit: int, tags: tuple[int, int, int]) -> bytes:
    if short is not None and len(data) < limit:
        return bytes([short | len(data)]) + data
    for tag, code in zip(tags, (">B", ">H", ">I"), strict=True):
        if len(data) < 1 << 8 * struct.calcsize(code):
            return bytes([tag]) + struct.pack(code, len(data)) + data
    raise ValueError(len(data))


def _count(count: int, short: int, tags: tuple[int, int]) -> bytes:
    if count < 16:
        return bytes([short | count])
    return (
        bytes([tags[0]]) + struct.pack(">H", count) if count < 1 << 16 else bytes([tags[1]]) + struct.pack(">I", count)
    )


# --- zstd -----------------------------------------------------------------------------------------------------------

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def frame(data: bytes) -> bytes:
    """A single-segment frame of raw blocks, or of run-length blocks where all bytes are the same."""
    return ZSTD_MAGIC + frame_header(len(data)) + frame_blocks(data)


def frame_header(length: int) -> bytes:
    """Descriptor and content size of a single-segment frame, the size in as few bytes as it fits."""
    if length < 256:
        return bytes([0x20, length])
    if length < 256 + (1 << 16):
        return b"\x60" + struct.pack("<H", length - 256)
    return b"\xa0" + struct.pack("<I", length)


def frame_blocks(data: bytes, size: int = 1 << 17) -> bytes:
    """Blocks of at most ``size`` bytes each, the last one marked; an empty one for no data."""
    out = b""
    for start in range(0, max(1, len(data)), size):
        part = data[start : start + size]
        last = start + size >= len(data)
        same = len(part) > 1 and part == part[:1] * len(part)
        out += (len(part) << 3 | (2 if same else 0) | last).to_bytes(3, "little")
        out += part[:1] if same else part
    return out
