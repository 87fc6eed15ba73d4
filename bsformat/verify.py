"""Reading everything in a file once and naming whatever is wrong with it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .block import Span
from .container import Container
from .errors import BstkError, FormatError
from .network import Network
from .opening import open_container
from .source import ByteSource

#: Bytes read and checked at a time.
CHUNK = 8 << 20
#: What is said once of a volume, of which nothing more is read then.
_VOLUME_FAULTS = frozenset({"volume-missing", "volume-truncated", "volume-trailing-bytes"})


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Attributes:
        uri, root, version: which file; root as 64 hexadecimal digits.
        n_blocks: blocks checked. size: bytes of the file, all of them checked.
        problems: one error for each damaged part, and for each volume that is missing or of another length, in file
            order; empty if the file is sound.
    """

    uri: str
    root: str
    version: str
    n_blocks: int
    size: int
    problems: list[BstkError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    uri: str | os.PathLike[str] | ByteSource | Container,
    *,
    root: str | None = None,
    network: Network | None = None,
    progress: Callable[[int], object] = lambda n: None,
    **storage_options: Any,
) -> Report:
    """Check every byte: head, digests of all blocks and attachments, codecs, padding, finite scales and factors.

    Args:
        root: the root digest that the file must have.
        network: see `bsformat.open`.
        progress: called with the number of bytes checked since the last call.

    Raises:
        SourceError: the bytes could not be read.
        FormatError: the head itself is wrong, so that nothing after it can be found. Damage after the head, and volumes
            that are missing or of another length, do not raise: they are listed in the report.
    """
    container = (
        uri
        if isinstance(uri, Container)
        else open_container(uri, root=root, network=network, cache=False, **storage_options)
    )
    try:
        report = Report(
            container.uri,
            container.root,
            container.version,
            container.available_blocks,
            container.superblock.present_length,
        )
        for item in container.metadata.attachments:
            _collect(report, partial(container.attachment, item.name))
        head = container.superblock
        tail = head.head_length + head.attachments_length
        if tail < head.blocks_offset:
            padding = container.read(tail, head.blocks_offset - tail)
            _collect(report, partial(container.check_zero, padding, tail))
        progress(head.blocks_offset)
        faulty = None
        for span in container.spans(0, container.available_blocks, CHUNK):
            volume = container.volume_of(span.first)
            if faulty is None or volume is not faulty:
                faulty = None if _check_span(report, container, span) else volume
            progress(span.length)
        return report
    finally:
        if container is not uri:
            container.close()


def _collect(report: Report, check: Callable[[], object]) -> None:
    try:
        check()
    except FormatError as error:
        report.problems.append(error)


def _check_span(report: Report, container: Container, span: Span) -> bool:
    """Collect what is wrong with the blocks of a span; False if the volume that it lies in cannot be read."""
    try:
        view = memoryview(container.read(span.offset, span.length))
    except BstkError as error:
        if error.reason not in _VOLUME_FAULTS:
            raise
        report.problems.append(error)
        return False
    for number in range(span.first, span.stop):
        block = container.block(number)
        at = block.offset - span.offset
        end = at + block.stored
        _collect(report, partial(container.decode_block, block, view[at:end]))
        following = container.index.offset[number + 1] - span.offset if number + 1 < span.stop else span.length
        gap = view[end : int(following)]
        _collect(report, partial(container.check_zero, gap, span.offset + end))
    return True
