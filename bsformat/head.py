"""Reading the head of a file: superblock, metadata and index, in at most two reads (spec §7.1)."""

from dataclasses import dataclass

from . import codec, metadata_reader, superblock
from . import index as index_section
from .errors import FormatError, TruncatedError
from .index import Index
from .metadata import Attachment, Metadata
from .source import ByteSource, checked
from .superblock import Superblock

#: Bytes of the first read: the whole head of a small file, and of any file its superblock.
FIRST_READ = 1 << 14


@dataclass(frozen=True, slots=True)
class Head:
    """The decoded head.

    Attributes:
        lead: what the first read brought if that was more than the head, else empty.
        stored: the bytes of the head as they stand in the object.
    """

    superblock: Superblock
    metadata: Metadata
    index: Index
    lead: bytes
    stored: bytes


def read_head(source: ByteSource, root: str | None, first_read: int = FIRST_READ) -> Head:
    """Read, authenticate and check the head; one read if it fits the first, else two.

    Args:
        root: the root digest that the caller demands, 64 hexadecimal digits, or None.
        first_read: bytes of the first read, at least those of the superblock.

    Raises:
        SourceError, FormatError
    """
    where = source.name
    data, size = source.start(first_read)
    checked(data, 0, min(first_read, size), where)
    block = superblock.decode(bytes(data[: superblock.SIZE]), where)
    check_size(block, size, where)
    if len(data) < block.head_length:
        data = bytes(data) + bytes(source.get(len(data), block.head_length - len(data)))
    lead = bytes(data) if len(data) > block.head_length else b""
    middle = superblock.SIZE + block.metadata_stored
    stored_meta, stored_index = bytes(data[superblock.SIZE : middle]), bytes(data[middle : block.head_length])
    # Nothing of metadata and index is decoded before the root vouches for it.
    superblock.check_root(block, stored_meta, stored_index, where, root)
    raw = codec.decompress(stored_meta, block.metadata_length, "the metadata", where, "metadata-compression")
    meta = metadata_reader.decode(raw, where, has_volumes=block.has_volumes)
    check_attachments(meta.attachments, block, where)
    rows = codec.decompress(stored_index, block.index_length, "the index", where, "index-compression")
    index = index_section.decode(rows, meta, block.blocks_offset, block.file_length, where)
    for curve in meta.curves:
        if curve.points and curve.points[-1][0] > len(index):
            raise FormatError(
                f"metadata: a curve has a point at {curve.points[-1][0]} blocks, but there are {len(index)}",
                where=where,
                reason="metadata-value",
            )
    if meta.volumes and meta.volumes[-1].first_block >= len(index):
        raise FormatError(
            f"metadata: the last volume begins with block {meta.volumes[-1].first_block}, but there are {len(index)}",
            where=where,
            reason="metadata-value",
        )
    return Head(block, meta, index, lead, bytes(data[: block.head_length]))


def check_size(block: Superblock, size: int, where: str) -> None:
    """Refuse an object that holds less, or more, than its superblock says."""
    own = block.own_length
    if size < own:
        raise TruncatedError(f"the file ends after {size} of {own} bytes; fetch it again", where=where, offset=size)
    if size > own:
        what = "the first volume" if own < block.present_length else "the file"
        raise FormatError(
            f"{size - own} bytes follow the end of {what} at {own}",
            where=where,
            offset=own,
            reason="trailing-bytes",
        )


def check_attachments(items: tuple[Attachment, ...], block: Superblock, where: str) -> None:
    """Refuse attachments that do not tile their region in order."""
    at = 0
    for item in items:
        if item.data is None:
            if item.offset != at:
                raise FormatError(
                    f"metadata: attachment {item.name!r} starts at {item.offset}, expected {at}: "
                    "attachments leave no hole and do not overlap",
                    where=where,
                    reason="attachment-offset",
                )
            at += item.stored
    if at != block.attachments_length:
        raise FormatError(
            f"metadata: the attachments have {at} bytes, but the superblock says {block.attachments_length}",
            where=where,
            reason="attachment-offset",
        )
