"""Laying a file down: the head is made from what its blocks are, and everything goes to its place, atomically."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

import blake3
import numpy as np

from . import codec, metadata, metadata_reader, registry, superblock
from . import index as index_section
from .atomic import writing
from .cutting import cut, replace_volumes
from .errors import BstkError
from .index import Index
from .metadata import Attachment, Form, Metadata
from .superblock import Superblock

#: Attachments up to this many bytes travel in the head: a model cannot be built without its configuration.
INLINE_LIMIT = 1 << 14


@dataclass(frozen=True, slots=True)
class Stored:
    """A block that is ready to be written: where its stored bytes are now, and what the index says of it."""

    form: Form
    at: int
    stored: int
    length: int
    digest: bytes


Row = tuple[int, int, float, Stored]  # chain, level, worth, block
#: Writes bytes that follow each other, where the file stands.
Emit = Callable[[IO[bytes]], None]
#: Writes blocks, each at its place in the file.
EmitBlocks = Callable[[IO[bytes], Sequence[tuple[int, Stored]]], None]


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that a file is made of.

    Attributes:
        metadata: of the file; its forms do not count, they are taken from the blocks.
        order: the blocks in the order of the file. required: how many leading ones every prefix contains.
        write_files: writes the stored bytes of all external attachments, in their order.
        write_blocks: writes all blocks, in any order, each where it is told.
    """

    metadata: Metadata
    order: Sequence[Row]
    required: int
    write_files: Emit
    write_blocks: EmitBlocks


def in_order(read: Callable[[Stored], bytes]) -> EmitBlocks:
    """Writes the blocks one after the other, with what ``read`` gives for each."""

    def write(out: IO[bytes], places: Sequence[tuple[int, Stored]]) -> None:
        for at, block in places:
            out.write(bytes(at - out.tell()))
            out.write(read(block))

    return write


@dataclass(frozen=True, slots=True)
class Laid:
    """What was written.

    Attributes:
        root: the root digest, 64 hexadecimal digits.
        size: bytes of the file, all volumes together.
        volumes: the names of its volumes after the first; none for a file of one object.
    """

    root: str
    size: int
    volumes: tuple[str, ...] = ()


def lay_down(path: str, content: Content, volume_size: int | None = None) -> Laid:
    """Write the file under a name beside ``path``, and rename it.

    Args:
        volume_size: bytes that an object may have: the file becomes several if it has more. None: it is one.

    Raises:
        FormatError: a reader would refuse the file. WriteError: it cannot be written; reason ``volume-size`` if the
            head or a block is larger than a volume.
    """
    blocks = [block for *_, block in content.order]
    forms = list(dict.fromkeys(block.form for block in blocks))
    number = {form: i for i, form in enumerate(forms)}
    offsets, end = [], 0
    for block in blocks:
        offsets.append(registry.align(end))
        end = offsets[-1] + block.stored
    index = Index(
        content.required,
        offset=np.array(offsets, "<u8"),
        stored=np.array([b.stored for b in blocks], "<u8"),
        length=np.array([b.length for b in blocks], "<u8"),
        digest=np.frombuffer(b"".join(b.digest for b in blocks), "V32"),
        worth=np.array([worth for _, _, worth, _ in content.order], "<f4"),
        chain=np.array([chain for chain, *_ in content.order], "<u4"),
        level=np.array([level for _, level, *_ in content.order], "<u2"),
        form=np.array([number[b.form] for b in blocks], "<u2"),
    )
    ends = [at + block.stored for at, block in zip(offsets, blocks, strict=True)]
    meta = replace(content.metadata, forms=tuple(forms), volumes=())
    try:
        rows = index_section.encode(index)
        packed = codec.compress(rows)
        head, stored = _head(meta, rows, packed, end)
        if volume_size is not None and head.file_length > volume_size:
            meta = cut(path, meta, ends, volume_size, lambda made: _head(made, rows, packed, end)[0].blocks_offset)
            head, stored = _head(meta, rows, packed, end)
            head = replace(head, object_length=head.blocks_offset + offsets[meta.volumes[0].first_block])
        raw = metadata.encode(meta)
    except BstkError as error:
        raise error.at(path) from None
    # Nothing is written that a reader would refuse: the same checks, first.
    superblock.decode(head.encode(), path)
    checked = metadata_reader.decode(raw, path, has_volumes=head.has_volumes)
    index_section.decode(rows, checked, head.blocks_offset, head.file_length, path)

    def emit(out: IO[bytes]) -> None:
        for part in (head.encode(), *stored):
            out.write(part)
        content.write_files(out)
        content.write_blocks(out, [(head.blocks_offset + at, b) for at, b in zip(offsets, blocks, strict=True)])

    starts = [head.blocks_offset + offsets[volume.first_block] for volume in meta.volumes]
    names = tuple(volume.name for volume in meta.volumes)
    with writing(path):
        replace_volumes(path, names, [0, *starts, head.file_length], emit)
    return Laid(head.root.hex(), head.file_length, names)


def _head(meta: Metadata, rows: bytes, packed: bytes, blocks_length: int) -> tuple[Superblock, tuple[bytes, bytes]]:
    """The superblock of one object of all blocks, and the stored sections."""
    raw = metadata.encode(meta)
    stored = codec.compress(raw), packed
    files = sum(a.stored for a in meta.attachments if a.data is None)
    # A file that uses nothing of a later version is one of the first.
    minor, must = (1, superblock.VOLUMES) if meta.volumes else (0, 0)
    lengths = (len(stored[0]), len(raw), len(stored[1]), len(rows), files)
    head = Superblock(*lengths, file_length=0, present_length=0, root=bytes(32), minor=minor, must=must)
    head = replace(head, file_length=head.blocks_offset + blocks_length).holding(head.blocks_offset + blocks_length)
    return replace(head, root=superblock.compute_root(head.identity(), *stored)), stored


def pack_files(files: Mapping[str, bytes]) -> tuple[tuple[Attachment, ...], Emit]:
    """The records of all attachments, small ones inline, and what writes the stored bytes of the others."""
    records, stored_files, at = [], [], 0
    for name, data in sorted(files.items()):
        if len(data) <= INLINE_LIMIT:
            records.append(Attachment(name, len(data), data=data))
            continue
        how, stored = codec.choose(data)
        records.append(Attachment(name, len(data), how, None, at, len(stored), blake3.blake3(stored).digest()))
        stored_files.append(stored)
        at += len(stored)
    return tuple(records), lambda out: out.writelines(stored_files)
