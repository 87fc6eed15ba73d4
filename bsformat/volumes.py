"""Which bytes of a file lie in which of its volumes (spec §4.8)."""

from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from .errors import FormatError
from .head import Head


@dataclass(frozen=True, slots=True)
class Extent:
    """One volume of a file.

    Attributes:
        name: of its object; of the first one, what it was opened as.
        first_block, n_blocks: which blocks it holds.
        offset, length: which bytes of the file: the object has exactly ``length`` of them.
    """

    name: str
    first_block: int
    n_blocks: int
    offset: int
    length: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def extents(head: Head, uri: str) -> tuple[Extent, ...]:
    """The volumes of a file, the first one among them; none where the file is one object, or this one holds it all.

    Raises:
        FormatError: reason ``superblock-invalid``, where this object ends in the middle of the first volume.
    """
    block, index = head.superblock, head.index
    if block.own_length == block.present_length:
        return ()
    starts = [0, *(v.first_block for v in head.metadata.volumes)]
    offsets = [0, *(int(index.offset[start]) for start in starts[1:])]
    if offsets[1] != block.own_length:
        raise FormatError(
            f"an object of {block.own_length} bytes, but the first volume has {offsets[1]}",
            where=uri,
            offset=88,
            reason="superblock-invalid",
        )
    name = PurePosixPath(uri.partition("?")[0]).name
    stops, ends = [*starts[1:], len(index)], [*offsets[1:], block.file_length]
    names = [name, *(v.name for v in head.metadata.volumes)]
    rows = zip(names, starts, stops, offsets, ends, strict=True)
    return tuple(Extent(n, first, stop - first, at, end - at) for n, first, stop, at, end in rows)
