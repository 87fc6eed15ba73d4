"""The codecs of stored bytes: ``none`` and ``zstd`` (spec §8.3)."""

import zstandard

from .errors import FormatError, UnsupportedError
from .registry import ALIGNMENT, expansion_limit

#: Fixed so that the same input gives the same bytes; the library's version is the one thing it still depends on.
_LEVEL = 9


def decompress(data: bytes | memoryview, length: int, what: str, where: str, reason: str) -> bytes:
    """One zstd frame that declares exactly ``length`` bytes, without a dictionary and without bytes after it.

    Args:
        length: the decoded size that the head declares; nothing larger is ever allocated.
        what: the name of the thing for messages.
        reason: the reason code of the FormatError raised where it does not decode to that.
    """
    try:
        frame = zstandard.get_frame_parameters(data)
        if frame.content_size != length:
            raise zstandard.ZstdError(f"its frame holds {frame.content_size} bytes, expected {length}")
        if frame.dict_id:
            raise zstandard.ZstdError("it needs a dictionary")
        if length:
            out = zstandard.ZstdDecompressor().decompress(data, max_output_size=length, allow_extra_data=False)
        else:
            out = _nothing(data)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what} is not valid zstd: {error}", where=where, reason=reason) from None
    except MemoryError:
        raise UnsupportedError(
            f"{what} decodes to {length} bytes, which is more memory than the system gives: use a larger machine",
            where=where,
            reason="unsupported",
        ) from None
    if len(out) != length:
        raise FormatError(f"{what} decodes to {len(out)} bytes, expected {length}", where=where, reason=reason)
    return out


def _nothing(data: bytes | memoryview) -> bytes:
    """A frame of no bytes. `ZstdDecompressor.decompress` would look no further than the size that it declares."""
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    out: bytes = decoder.decompress(data)
    if not decoder.eof or decoder.unused_data:
        raise zstandard.ZstdError("it ends too early, or bytes follow it")
    return out


def compress(data: bytes | memoryview) -> bytes:
    """One zstd frame with its content size and without a checksum: the digests do that."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(data)


def choose(data: bytes) -> tuple[str, bytes]:
    """The codec worth using for ``data``, and the stored bytes: zstd where it saves a sixteenth and an alignment.

    What would decode to more than a reader lets so few bytes declare stays as it is.
    """
    packed = compress(data)
    if len(packed) + max(ALIGNMENT, len(data) // 16) <= len(data) <= expansion_limit(len(packed)):
        return "zstd", packed
    return "none", data
