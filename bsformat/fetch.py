"""Copying a prefix of a remote file to a local file that is a prefix file (spec §2), and growing it later.

What lies in several volumes becomes one object, of the same root.

The output is filled beside its name, in ``OUT.part``, and takes its name when all of it is there: under that name there
is a valid file or none, whenever the process ends. Growing copies what the old output holds into a new one, so that a
model that runs from the old one goes on reading it. Every byte that is kept, from wherever it comes, has been compared
with its digest, or is padding and zero.
"""

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from .atomic import writing
from .cache import BlockCache
from .cache_place import choose_cache
from .cached_head import read_cached_head
from .container import Container
from .errors import IntegrityError, WriteError
from .filling import Filler, Progress
from .head import read_head
from .network import Network, memory_of
from .opening import open_container
from .source import Buffer, ByteSource
from .superblock import SIZE, decode
from .traffic import CountedSource
from .uri import open_source
from .work_file import WorkFile


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
    network: Network | None = None,
    cache: BlockCache | bool = True,
    memory: int | str | None = None,
    progress: Progress = lambda done, total: None,
    **storage_options: Any,
) -> Fetched:
    """Make ``output`` a local file of the prefix that a budget buys; if it holds less, read the difference.

    A file that holds that much already stays as it is. What an interrupted call left is used by the next one.

    Args:
        output: the local file; ``OUT.part`` beside it is what is being filled.
        budget: resident bytes of the weights, a size, or a percentage of all blocks.
        root: the root digest (64 hexadecimal digits) that the file must have.
        network, memory: as for `bsformat.open`.
        cache: as for `bsformat.open`; it is read and nothing is added, since the local file holds it all.
        progress: called with the bytes of the prefix that are there, and those that it has.
        storage_options: given to the fsspec file system.

    Raises:
        SourceError, FormatError: as `bsformat.open`; IntegrityError with ``root-mismatch`` if the output, or what was
            begun, is of another file. BudgetError: as `Container.plan`. WriteError: the output cannot be written.
    """
    path, most = os.fspath(output), memory_of(memory, network)
    if os.path.isdir(path):
        raise WriteError("is a folder: name the file that is to be made in it", where=path)
    with ExitStack() as stack:
        source = CountedSource(open_source(uri, network=network, **storage_options))
        stack.callback(source.close)
        kept = choose_cache(cache, uri)
        old = stack.enter_context(open_container(path)) if os.path.exists(path) else None
        with writing(path, "what came so far is kept in its .part"):
            work = stack.enter_context(WorkFile(f"{path}.part"))
            begun = work.head()
            if begun is None:
                work.restart()
        container = _open(source, old, (work.path, begun), root, kept and kept.frozen(), most)
        plan = container.plan(budget)
        have = _held(old) if old else 0
        filler = Filler(container, work, old, have, plan.n_blocks, progress)
        if have < plan.n_blocks or old is None:
            with writing(path, "what came so far is kept in its .part"):
                filler.fill(plan.offset + plan.length)
                whole = container.superblock.holding(plan.offset + plan.length)
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
    memory: int,
) -> Container:
    """The remote file; its head is not read again if it is on this machine."""
    local = begun if begun[1] is not None else (old.uri, _stored_head(old)) if old else None
    if local is None or local[1] is None:
        head = read_head(source, root) if cache is None else read_cached_head(source, root, cache)
        return Container(source, cache=cache, head=head, memory=memory)
    known = _KnownHead(source, local[1], local[0])
    if old and old.root != known.root:
        raise _mixed(begun[0], known.root, old.uri, old.root)
    return Container(source, cache=cache, head=read_head(known, root, SIZE), memory=memory)


def _held(old: Container) -> int:
    """How many leading blocks the output holds: where it lies in volumes, those of the volumes that are there."""
    if not old.volumes:
        return old.available_blocks
    folder, held = os.path.dirname(old.uri), 0
    for number, volume in enumerate(old.volumes):
        place = os.path.join(folder, volume.name) if number else old.uri
        if not os.path.exists(place) or os.path.getsize(place) != volume.length:
            break
        held += volume.n_blocks
    return held


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
