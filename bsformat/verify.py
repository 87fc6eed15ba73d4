"""Reading everything in a file once and naming whatever is wrong with it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from .block import Span
from .container import Container
from .errors import BstkError, FormatError
from .flow import Flow
from .network import Network
from .opening import open_container
from .source import Buffer, ByteSource

#: Bytes of blocks that are read in one go, without threads; more are read as a model that loads them reads them.
CHUNK = 1 << 20
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
    memory: int | str | None = None,
    progress: Callable[[int], object] = lambda n: None,
    **storage_options: Any,
) -> Report:
    """Check every byte: head, digests of all blocks and attachments, codecs, padding, finite scales and factors.

    Args:
        root: the root digest that the file must have.
        network, memory: see `bsformat.open`; an open container has its own.
        progress: called with the number of bytes checked since the last call.

    Raises:
        SourceError: the bytes could not be read.
        FormatError: the head itself is wrong, so that nothing after it can be found. Damage after the head, and volumes
            that are missing or of another length, do not raise: they are listed in the report.
    """
    container = (
        uri
        if isinstance(uri, Container)
        else open_container(uri, root=root, network=network, cache=False, memory=memory, **storage_options)
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
            _collect(report.problems, partial(container.attachment, item.name))
        head = container.superblock
        tail = head.head_length + head.attachments_length
        if tail < head.blocks_offset:
            padding = container.read(tail, head.blocks_offset - tail)
            _collect(report.problems, partial(container.check_zero, padding, tail))
        progress(head.blocks_offset)
        starts = [volume.first_block for volume in container.volumes] or [0]
        for start, stop in pairwise([*starts, container.available_blocks]):
            if start < stop:
                _check_blocks(report, container, start, stop, progress)
        return report
    finally:
        if container is not uri:
            container.close()


def _collect(problems: list[Any], check: Callable[[], object]) -> None:
    try:
        check()
    except FormatError as error:
        problems.append(error)


def _check_blocks(
    report: Report, container: Container, start: int, stop: int, progress: Callable[[int], object]
) -> None:
    """Collect what is wrong with the blocks of a volume, or of a file of one, and the padding between them.

    In the order of the file; a fault of the volume as a whole comes last, and nothing more is read of it.
    """
    found: list[tuple[int, Sequence[BstkError]]] = []
    length, done = container.layout.extent(start, stop), 0
    try:
        for first, problems, checked in _checked_spans(container, start, stop, length):
            found.append((first, problems))
            done += checked
            progress(checked)
        found.append((stop, _end_problems(container, stop)))
    except BstkError as error:
        if error.reason not in _VOLUME_FAULTS:
            raise
        found.append((stop, [error]))
        progress(length - done)
    report.problems.extend(problem for _, some in sorted(found, key=lambda entry: entry[0]) for problem in some)


def _end_problems(container: Container, stop: int) -> Sequence[BstkError]:
    """What is wrong with the padding at the end of a volume that another one follows."""
    problems: list[BstkError] = []
    if stop < container.available_blocks:
        last = container.block(stop - 1)
        end = last.offset + last.stored
        if length := container.block(stop).offset - end:
            _collect(problems, partial(container.check_zero, container.read(end, length), end))
    return problems


def _checked_spans(
    container: Container, start: int, stop: int, length: int
) -> Iterator[tuple[int, Sequence[BstkError], int]]:
    """The first block of each span, what is wrong with it, and its bytes; the spans in any order."""
    examine = partial(_span_problems, container)
    if length <= CHUNK:
        for span in container.spans(start, stop, CHUNK):
            yield span.first, examine(span, container.read(span.offset, span.length), False), span.length
        return
    flow = Flow(container, [(start, stop)], memory=container.memory, ordered=False, examine=examine)
    with closing(iter(flow)) as parts:
        for part in parts:
            yield part.span.first, part.problems, part.span.length


def _span_problems(container: Container, span: Span, data: Buffer, compared: bool) -> list[FormatError]:
    problems: list[FormatError] = []
    view = memoryview(data)
    for number in range(span.first, span.stop):
        block = container.block(number)
        at = block.offset - span.offset
        end = at + block.stored
        _collect(problems, partial(container.decode_block, block, view[at:end], compared=compared))
        following = container.index.offset[number + 1] - span.offset if number + 1 < span.stop else span.length
        gap = view[end : int(following)]
        _collect(problems, partial(container.check_zero, gap, span.offset + end))
    return problems
