"""Taking blocks and attachments from one file into another, in memory that does not grow with the file.

Blocks are read in the order in which they lie, in ranges of some megabytes, whatever order they go into. Every one is
checked in full before it is passed on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Final

import blake3

from . import codec
from .block import Block, Span
from .container import Container
from .errors import IntegrityError
from .laying import EmitBlocks, Stored
from .metadata import Attachment
from .registry import ALIGNMENT

#: Bytes read at a time, and the most that is read without need, so as not to ask twice.
SPAN: Final = 4 << 20
GAP: Final = 1 << 18

#: How the blocks of the new file are stored: as they were; as when resident; with zstd where that saves something.
CODECS: Final = ("keep", "none", "zstd")


def spans_of(container: Container, numbers: Sequence[int]) -> Iterator[Span]:
    """The ranges that hold the blocks of those numbers, which rise; what lies between them may be in a range too."""
    offset, stored = container.index.offset, container.index.stored
    first = 0
    for i, number in enumerate(numbers):
        last = i + 1 == len(numbers)
        if last or int(offset[numbers[i + 1]]) - int(offset[number]) - int(stored[number]) > GAP:
            yield from container.spans(numbers[first], number + 1, SPAN)
            first = i + 1


def checked_blocks(
    container: Container, numbers: Sequence[int]
) -> Iterator[tuple[Block, memoryview, bytes | memoryview]]:
    """The blocks of those numbers, which rise: each with its stored bytes and its payload, both checked.

    Raises:
        SourceError: they cannot be read. FormatError: one is damaged, as of `Container.decode_block`.
    """
    wanted = frozenset(numbers)
    for span in spans_of(container, numbers):
        if wanted.isdisjoint(range(span.first, span.stop)):
            continue
        view = memoryview(container.read(span.offset, span.length))
        for number in range(span.first, span.stop):
            if number not in wanted:
                continue
            block = container.block(number)
            at = block.offset - span.offset
            end = at + block.stored
            container.check_zero(view[end : end + -end % ALIGNMENT], span.offset + end)
            yield block, view[at:end], container.decode_block(block, view[at:end])
        del view  # before the next range takes its memory


def copy_blocks(container: Container, progress: Callable[[int], object]) -> EmitBlocks:
    """Writes blocks as they are stored, each straight to its place: `Stored.at` is where it lies in the container."""

    def write(out: IO[bytes], places: Sequence[tuple[int, Stored]]) -> None:
        place = {stored.at: at for at, stored in places}
        offset = container.index.offset[: container.available_blocks].tolist()
        for block, data, _ in checked_blocks(container, [b for b, at in enumerate(offset) if at in place]):
            out.seek(place[block.offset])
            out.write(data)
            progress(len(data))
            del data, _  # they hold the range that the block came in

    return write


def recode(
    container: Container, numbers: Sequence[int], how: str, out: IO[bytes], progress: Callable[[int], object]
) -> dict[int, Stored]:
    """Write the blocks of those numbers, which rise, with another codec, one after the other.

    Args:
        how: ``none`` or ``zstd``, see `CODECS`.

    Returns:
        By number: `Stored.at` is where each lies in ``out``.
    """
    made = {}
    for block, stored, payload in checked_blocks(container, numbers):
        name, data = codec.choose(bytes(payload)) if how == "zstd" else ("none", payload)
        digest = blake3.blake3(data).digest()
        made[block.number] = Stored(replace(block.form, codec=name), out.tell(), len(data), block.length, digest)
        out.write(data)
        progress(len(stored))
        del stored, payload, data  # they hold the range that the block came in
    return made


def copy_files(container: Container, out: IO[bytes]) -> None:
    """Write the external attachments as they are stored, each compared with its digest.

    Raises:
        IntegrityError: reason ``attachment-digest``.
    """
    for item in container.metadata.attachments:
        if item.data is None:
            _copy_file(container, item, out)


def _copy_file(container: Container, item: Attachment, out: IO[bytes]) -> None:
    begin = container.superblock.head_length + item.offset
    hasher = blake3.blake3()
    for at in range(0, item.stored, SPAN):
        data = container.read(begin + at, min(SPAN, item.stored - at))
        hasher.update(data)
        out.write(data)
    if hasher.digest() != item.digest:
        raise IntegrityError(
            f"attachment {item.name!r} does not match its digest: damaged or changed; fetch it again",
            where=container.uri,
            offset=begin,
            reason="attachment-digest",
        )
