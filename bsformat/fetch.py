"""Copying a prefix of a remote file to a local file that is a prefix file (spec §2), and growing it later.

The output is filled beside its name, in ``OUT.part``, and takes its name when all of it is there: under that name there
is a valid file or none, whenever the process ends. Growing copies what the old output holds into a new one, so that a
model that runs from the old one goes on reading it. Every byte that is kept, from wherever it comes, has been compared
with its digest, or is padding and zero.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Final

import blake3

from . import registry
from .atomic import writing
from .block import Span
from .cache import BlockCache
from .cache_place import choose_cache
from .cached_head import read_cached_head
from .container import Container, open_container
from .errors import IntegrityError
from .head import read_head
from .source import Buffer, ByteSource, open_source
from .superblock import SIZE, decode
from .traffic import CountedSource
from .work_file import WorkFile

#: Bytes of one request, unless a single block is larger, and requests in flight at once.
REQUEST_BYTES: Final = 4 << 20
REQUESTS: Final = 4

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What `fetch` did.

    Attributes:
        path, uri, root: the local file, where it comes from, and the root of both, 64 hexadecimal digits.
        n_blocks, total_blocks: blocks that the local file holds, and that the whole file has.
        size, file_length: bytes of the local file, and of the whole file.
        requests, bytes_read: made of and read from ``uri``.
        bytes_local, bytes_cached: bytes of blocks that were on this machine before, in local files and in the cache.
    """

    path: str
    uri: str
    root: str
    n_blocks: int
    total_blocks: int
    size: int
    file_length: int
    requests: int
    bytes_read: int
    bytes_local: int
    bytes_cached: int

    @property
    def whole(self) -> bool:
        """Whether the local file is the whole file, byte for byte."""
        return self.size == self.file_length

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self) | {"whole": self.whole}


def fetch(
    uri: str | os.PathLike[str] | ByteSource,
    output: str | os.PathLike[str],
    budget: int | str = "100%",
    *,
    root: str | None = None,
    cache: BlockCache | bool = True,
    progress: Progress = lambda done, total: None,
    **storage_options: Any,
) -> Fetched:
    """Make ``output`` a local file of the prefix that a budget buys; if it holds less, read the difference.

    A file that holds that much already stays as it is. What an interrupted call left is used by the next one.

    Args:
        output: the local file; ``OUT.part`` beside it is what is being filled.
        budget: resident bytes of the weights, a size, or a percentage of all blocks.
        root: the root digest (64 hexadecimal digits) that the file must have.
        cache: as for `bsformat.open`; it is read and nothing is added, since the local file holds it all.
        progress: called with the bytes of the prefix that are there, and those that it has.
        storage_options: given to the fsspec file system.

    Raises:
        SourceError, FormatError: as `bsformat.open`; IntegrityError with ``root-mismatch`` if the output, or what was
            begun, is of another file. BudgetError: as `Container.plan`. WriteError: the output cannot be written.
    """
    path = os.fspath(output)
    with ExitStack() as stack:
        source = CountedSource(open_source(uri, **storage_options))
        stack.callback(source.close)
        kept = choose_cache(cache, uri)
        old = stack.enter_context(open_container(path)) if os.path.exists(path) else None
        with writing(path, "what came so far is kept in its .part"):
            work = stack.enter_context(WorkFile(f"{path}.part"))
            begun = work.head()
            if begun is None:
                work.restart()
        container = _open(source, old, (work.path, begun), root, kept and kept.frozen())
        plan = container.plan(budget)
        have = old.available_blocks if old else 0
        filler = _Filler(container, work, old, plan.n_blocks, progress)
        if have < plan.n_blocks or old is None:
            with writing(path, "what came so far is kept in its .part"):
                filler.fill(plan.offset + plan.length)
                whole = replace(container.superblock, present_length=plan.offset + plan.length)
                work.publish(path, whole.encode(), whole.present_length)
            have, size = plan.n_blocks, whole.present_length
        else:
            size = old.superblock.present_length
        return Fetched(
            path,
            source.name,
            container.root,
            have,
            len(container),
            size,
            container.size,
            source.requests,
            source.bytes_read,
            filler.bytes_local,
            container.bytes_cached,
        )


def _open(
    source: CountedSource,
    old: Container | None,
    begun: tuple[str, bytes | None],
    root: str | None,
    cache: BlockCache | None,
) -> Container:
    """The remote file; its head is not read again if it is on this machine."""
    local = begun if begun[1] is not None else (old.uri, _stored_head(old)) if old else None
    if local is None or local[1] is None:
        head = read_head(source, root) if cache is None else read_cached_head(source, root, cache)
        return Container(source, cache=cache, head=head)
    known = _KnownHead(source, local[1], local[0])
    if old and old.root != known.root:
        raise _mixed(begun[0], known.root, old.uri, old.root)
    return Container(source, cache=cache, head=read_head(known, root, SIZE))


def _stored_head(container: Container) -> bytes:
    return bytes(container.read(0, container.superblock.head_length))


def _mixed(path: str, root: str, other: str, other_root: str) -> IntegrityError:
    return IntegrityError(
        f"is of root {root}, but {other} has root {other_root}: two files are not mixed; "
        "name another output, or remove this one",
        where=path,
        reason="root-mismatch",
    )


class _KnownHead:
    """A remote object whose head is here already: its superblock is read, to see that it is the same file."""

    def __init__(self, source: ByteSource, head: bytes, path: str) -> None:
        self.name = source.name
        self.root = decode(head, path).root.hex()
        self._source, self._head, self._path = source, head, path

    def start(self, length: int) -> tuple[Buffer, int]:
        """See `bsformat.ByteSource.start`."""
        data, size = self._source.start(length)
        root = decode(bytes(data), self.name).root.hex()
        if root != self.root:
            raise _mixed(self._path, self.root, self.name, root)
        return data, size

    def get(self, offset: int, length: int) -> Buffer:
        """See `bsformat.ByteSource.get`: of the head."""
        return self._head[offset : offset + length]

    def close(self) -> None:
        """Nothing to release."""


class _Filler:
    """Fills a work file with the first ``n_blocks`` blocks and what stands before them.

    Attributes:
        bytes_local: bytes that were in the work file or in the old output.
    """

    def __init__(
        self, container: Container, work: WorkFile, old: Container | None, n_blocks: int, progress: Progress
    ) -> None:
        self._container, self._work, self._old, self._n = container, work, old, n_blocks
        self._progress = progress
        self._done = self._total = self.bytes_local = 0

    def fill(self, total: int) -> None:
        """Get what is missing: from the old output, then from the remote file.

        Args:
            total: bytes of the prefix.
        """
        self._total = total
        fresh = self._work.head() is None
        if fresh:
            # While it is filled, it says of itself that it is whole: under a wrong name it is seen to be cut off.
            self._work.write(SIZE, self._container.stored_head[SIZE:])
            self._work.write(0, self._container.superblock.encode())
        self._advance(self._container.superblock.head_length)
        self._fill_attachments()
        missing = list(range(self._n))
        if not fresh:
            missing = self._keep(missing, self._work.read, copy=False)
        if self._old:
            there = [i for i in missing if i < self._old.available_blocks]
            lost = self._keep(there, self._old.read, copy=True)
            missing = sorted(set(missing) - set(there) | set(lost))
        self._download([span for first, stop in _runs(missing) for span in self._spans(first, stop)])

    def _spans(self, first: int, stop: int) -> Iterator[Span]:
        return self._container.spans(first, stop, REQUEST_BYTES)

    def _advance(self, length: int) -> None:
        self._done += length
        self._progress(self._done, self._total)

    def _fill_attachments(self) -> None:
        s = self._container.superblock
        start, length = s.head_length, s.blocks_offset - s.head_length
        if length and not self._sound(self._work.read(start, length)):
            data: Buffer = self._old.read(start, length) if self._old else b""
            if not self._sound(data):
                data = self._container.read(start, length)
            if not self._sound(data):
                raise IntegrityError(
                    "the attachments do not match their digests, or are not padded with zeros; fetch them again",
                    where=self._container.uri,
                    offset=start,
                    reason="attachment-digest",
                )
            self._work.write(start, data)
        self._advance(length)

    def _sound(self, data: Buffer) -> bool:
        """Whether bytes are what stands between head and blocks."""
        s, view = self._container.superblock, memoryview(data)
        files = [a for a in self._container.metadata.attachments if a.data is None]
        return (
            len(view) == s.blocks_offset - s.head_length
            and not any(view[s.attachments_length :])
            and all(blake3.blake3(view[a.offset : a.offset + a.stored]).digest() == a.digest for a in files)
        )

    def _keep(self, numbers: list[int], read: Callable[[int, int], Buffer], *, copy: bool) -> list[int]:
        """Compare blocks that are on this machine with their digests; gives the numbers of those that are not sound.

        Args:
            copy: write the sound ones into the work file.
        """
        lost = []
        for first, stop in _runs(numbers):
            for span in self._spans(first, stop):
                view = memoryview(read(span.offset, span.length))
                for number in range(span.first, span.stop):
                    block = self._container.block(number)
                    at = block.offset - span.offset
                    data = view[at : at + block.stored]
                    if len(data) != block.stored or blake3.blake3(data).digest() != block.digest:
                        lost.append(number)
                        continue
                    if copy:
                        self._work.write(block.offset, data)
                    elif any(padding := view[at + block.stored : at + registry.align(block.stored)]):
                        self._work.write(block.offset + block.stored, bytes(len(padding)))
                    self.bytes_local += block.stored
                    self._advance(block.stored)
        return lost

    def _download(self, spans: list[Span]) -> None:
        pending: deque[Future[int]] = deque()
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="bstk fetch") as pool:
            try:
                for span in spans:
                    pending.append(pool.submit(self._download_span, span))
                    if len(pending) == REQUESTS:
                        self._advance(pending.popleft().result())
                while pending:
                    self._advance(pending.popleft().result())
            finally:
                for future in pending:
                    future.cancel()

    def _download_span(self, span: Span) -> int:
        data = self._container.read(span.offset, span.length)
        for _ in self._container.decode_span(span, data):
            pass
        self._work.write(span.offset, data)
        return span.length


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as ranges [first, stop)."""
    for _, group in groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0]):
        members = [number for _, number in group]
        yield members[0], members[-1] + 1
