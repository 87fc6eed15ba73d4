"""Making another file of the blocks of one, without taking the model apart again (spec §11.3).

The blocks can come in another order, be fewer, or be stored with another codec. What they hold stays as it is, bit by
bit, so a prefix that has the same blocks as before gives the same model.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from .arrange import Arrangement, Losses, arrange, surviving
from .atomic import spool, writing
from .container import Container
from .copying import CODECS, copy_blocks, copy_files, recode
from .errors import BudgetError, IntegrityError, RepackError
from .laying import Content, Stored, in_order, lay_down
from .metadata import Metadata
from .opening import open_container
from .source import ByteSource
from .units import format_size, parse_size
from .writer import WRITER

#: The key of `Metadata.extra` under which a file says what it was made of (spec §4.7).
HISTORY: Final = "bstk.history"


@dataclass(frozen=True, slots=True)
class Repacked:
    """What `repack` made.

    Attributes:
        path, root: the new file, and its root, 64 hexadecimal digits.
        uri, source_root: what it was made of.
        n_blocks, source_blocks: blocks of the new file, and of the source, those that a prefix file lacks included.
        size, n_volumes, total_bytes: of the new file: its bytes, the objects that they lie in, and the resident bytes
            of all of its blocks.
        curve_points, source_curve_points: points of all quality curves that still hold, and that the source has.
        requests, bytes_read: made of and read from ``uri``.
    """

    path: str
    root: str
    uri: str
    source_root: str
    n_blocks: int
    source_blocks: int
    size: int
    n_volumes: int
    total_bytes: int
    curve_points: int
    source_curve_points: int
    requests: int
    bytes_read: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def repack(
    uri: str | os.PathLike[str] | ByteSource | Container,
    output: str | os.PathLike[str],
    *,
    order: str | None = None,
    losses: Losses | None = None,
    levels: int | None = None,
    budget: int | str | None = None,
    codec: str = "keep",
    volume_size: int | str | None = None,
    root: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    **storage_options: Any,
) -> Repacked:
    """Write the blocks of a file into another one: reordered, fewer, or stored otherwise.

    A prefix file is taken for what it holds: the output is a whole file of those blocks. The output may be the source.
    Every block is checked in full on its way. Beside the head, memory holds a few megabytes and the largest block,
    whatever the size of the file; with another codec a nameless file beside the output holds the blocks until
    the head is known.

    Args:
        order: ``file`` as it is, ``worth`` by worth per byte, ``average`` level by level, by worth within a level. By
            default as it is, or by worth if there are losses.
        losses: for each packed tensor, for each of its row groups in their order, the loss with 0, 1, … and all of the
            levels that the source has: what the worth of each block follows from, in place of what the file says.
        levels: keep at most so many levels of each chain.
        budget: of the new order keep what these resident bytes buy: a size, or a percentage of all blocks.
        codec: ``keep``; ``none``; or ``zstd`` for those blocks where it saves a sixteenth.
        volume_size: bytes that an object may have, or a size as ``4GiB``; a larger file becomes several: ``OUT.bstk``,
            ``OUT.00002.bstk`` and so on. None: it is one, whatever the source was.
        root: the root digest (64 hexadecimal digits) that the source must have.
        progress: called with the stored bytes that are done, and those that there are.
        storage_options: given to `bsformat.open`, ``network`` included.

    Raises:
        SourceError, FormatError: as `bsformat.open`, or a block is damaged. BudgetError: the budget is no size, or
            below the required blocks. RepackError: order, losses, levels or codec are not what they can be.
            WriteError: the output cannot be written. Nothing is left behind then, and an output that was there stays.
    """
    path = os.fspath(output)
    with ExitStack() as stack:
        if isinstance(uri, Container):
            source = uri
            if root is not None and root.strip().lower() != source.root:
                raise IntegrityError(
                    f"root {source.root}, but {root} was demanded: this is another file",
                    where=source.uri,
                    reason="root-mismatch",
                )
        else:
            source = stack.enter_context(open_container(uri, root=root, cache=False, **storage_options))
        if codec not in CODECS:
            raise RepackError(f"{codec!r} is none of the codecs {', '.join(CODECS)}", where=source.uri)
        order = order or ("file" if losses is None else "worth")
        made = arrange(source, order, losses=losses, levels=levels, limit=_limit(source, budget))
        options = {"order": order, "losses": losses is not None, "levels": levels, "budget": budget, "codec": codec}
        size = options["volume_size"] = None if volume_size is None else parse_size(volume_size)
        meta = _metadata(source, made, options)
        advance = _Advance(sum(int(source.index.stored[b]) for b in made.blocks), progress)
        if codec == "keep":
            stored = {b: _as_stored(source, b) for b in made.blocks}
            write_blocks = copy_blocks(source, advance)
        else:
            scratch = stack.enter_context(spool(path))
            with writing(path):
                stored = recode(source, sorted(made.blocks), codec, scratch, advance)

            def read(block: Stored) -> bytes:
                scratch.seek(block.at)
                return scratch.read(block.stored)

            write_blocks = in_order(read)
        chain, level = source.index.chain, source.index.level
        rows = [(int(chain[b]), int(level[b]), w, stored[b]) for b, w in zip(made.blocks, made.worth, strict=True)]
        content = Content(meta, rows, made.required, lambda out: copy_files(source, out), write_blocks)
        laid = lay_down(path, content, size)
        return Repacked(
            path,
            laid.root,
            source.uri,
            source.root,
            len(made.blocks),
            len(source),
            laid.size,
            1 + len(laid.volumes),
            sum(int(source.index.length[b]) for b in made.blocks),
            _points(meta),
            _points(source.metadata),
            source.source.requests,
            source.source.bytes_read,
        )


class _Advance:
    def __init__(self, total: int, progress: Callable[[int, int], object]) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)


def _as_stored(container: Container, number: int) -> Stored:
    block = container.block(number)
    return Stored(block.form, block.offset, block.stored, block.length, block.digest)


def _limit(container: Container, budget: int | str | None) -> int | None:
    if budget is None:
        return None
    limit = parse_size(budget, container.total_bytes)
    if limit < container.minimum_bytes:
        raise BudgetError(
            f"a budget of {limit} bytes ({format_size(limit)}) is below the minimum of this file: "
            f"{container.minimum_bytes} bytes ({format_size(container.minimum_bytes)})",
            where=container.uri,
            reason="budget-too-small",
        )
    return limit


def _metadata(container: Container, made: Arrangement, options: dict[str, Any]) -> Metadata:
    """That of the source, with the curves that still hold, and one step more in its history."""
    old = container.metadata
    step = {
        "operation": "repack",
        "writer": WRITER,
        "root": container.root,
        "blocks": container.available_blocks,
        "options": {name: value for name, value in options.items() if value not in (None, False)},
    }
    before = old.extra.get(HISTORY)
    # What this version does not know may speak of the blocks as they were.
    extra = {name: value for name, value in old.extra.items() if not name.startswith("bstk.")}
    extra[HISTORY] = [*(before if isinstance(before, list) else []), step]
    return replace(old, writer=WRITER, curves=surviving(old.curves, made), extra=extra)


def _points(meta: Metadata) -> int:
    return sum(len(curve.points) for curve in meta.curves)
