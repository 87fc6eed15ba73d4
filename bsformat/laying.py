"""Laying a file down: the head is made from what its blocks are, and everything goes to its place, atomically."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

import blake3
import numpy as np

from . import codec, metadata, metadata_reader, registry, superblock
from . import index as index_section
from .atomic import replace_file, writing
from .errors import BstkError
from .index import Index
from .metadata import Attachment, Form, Metadata

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


def lay_down(path: str, content: Content) -> str:
    """Write the file under a name beside ``path``, and rename it.

    Returns:
        The root digest, 64 hexadecimal digits.

    Raises:
        FormatError: a reader would refuse the file. WriteError: it cannot be written.
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
    meta = replace(content.metadata, forms=tuple(forms))
    try:
        raw = metadata.encode(meta), index_section.encode(index)
    except BstkError as error:
        raise error.at(path) from None
    stored = codec.compress(raw[0]), codec.compress(raw[1])
    files = sum(a.stored for a in meta.attachments if a.data is None)
    lengths = (len(stored[0]), len(raw[0]), len(stored[1]), len(raw[1]), files)
    head = superblock.Superblock(*lengths, file_length=0, present_length=0, root=bytes(32))
    size = head.blocks_offset + end
    head = replace(head, file_length=size, present_length=size)
    head = replace(head, root=superblock.compute_root(head.identity(), *stored))
    # Nothing is written that a reader would refuse: the same checks, first.
    superblock.decode(head.encode(), path)
    index_section.decode(raw[1], metadata_reader.decode(raw[0], path), head.blocks_offset, size, path)

    def emit(out: IO[bytes]) -> None:
        for part in (head.encode(), *stored):
            out.write(part)
        content.write_files(out)
        content.write_blocks(out, [(head.blocks_offset + at, b) for at, b in zip(offsets, blocks, strict=True)])

    with writing(path):
        replace_file(path, emit)
    return head.root.hex()


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
