"""Writing a file: blocks come in any order, are spooled to disk, and are laid down in the order of worth.

The same tensors, payloads and order give the same bytes, whatever the order of the calls. Memory is bounded by the
largest block. The output appears under its name complete or not at all.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import blake3

from . import codec, payload, registry
from ._version import __version__
from .atomic import spool, writing
from .chains import Chains, takes_plane
from .container import Container
from .errors import FormatError
from .laying import Content, Row, Stored, in_order, lay_down, pack_files
from .metadata import Curve, Form, Metadata, Tensor, number_chains

WRITER = f"bitstack {__version__}"


class Writer:
    """Collects the blocks of one file. Use it in a ``with`` statement: leaving it removes the spool.

    Args:
        path: where the file goes; an existing file is replaced when `finish` succeeds, and only then.
        tensors: all tensors, scale vectors included, in the order that the file lists them.
        compress: raw blocks are compressed where that saves something.
    """

    def __init__(self, path: str | os.PathLike[str], tensors: Iterable[Tensor], *, compress: bool = True) -> None:
        self._compress = compress
        self.path = os.fspath(path)
        self.tensors = number_chains(list(tensors))
        self._chains = Chains(Metadata(WRITER, self.tensors, ()))
        self._n_chains = sum(t.n_chains for t in self.tensors)
        self._blocks: dict[int, list[Stored]] = {}
        self._files: dict[str, bytes] = {}
        self._scales = {
            self.tensors[number].first_chain for t in self.tensors if t.packed for number in (t.row_scale, t.col_scale)
        }
        self._spool = spool(self.path)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is still in its buffer may not fit the disk; nobody wants it any more
            self._spool.close()

    def put(self, chain: int, form: Form, data: bytes) -> None:
        """Add the next level of a chain. The codec is the writer's choice: zstd where it saves something worth it.

        Args:
            chain: its number (`Tensor.first_chain` plus the row group).
            data: the payload, of the length that form and tensor make.

        Raises:
            FormatError: the payload is not one. WriteError: the disk is full, say.
        """
        tensor = self._tensor(chain)
        rows = int(self._chains.at(chain).rows)
        what = f"level {len(self._blocks.get(chain, ()))} of {tensor.name}"
        if (form.kind == "raw") is tensor.packed or (not tensor.packed and chain in self._blocks):
            raise FormatError(f"{what} cannot be of kind {form.kind}", where=self.path, reason="index-form")
        if form.kind == "sparse" and tensor.columns > registry.MAX_SPARSE_COLUMNS:
            what += f", of {tensor.columns} columns,"
            raise FormatError(f"{what} cannot be of kind sparse", where=self.path, reason="index-form")
        if form.kind == "plane" and not takes_plane([b.form.kind for b in self._blocks.get(chain, ())]):
            what += f" is not one of the first {registry.MAX_PLANES} planes right after a sign block"
            raise FormatError(what, where=self.path, reason="index-plane")
        if len(data) != (expected := payload.length(form, tensor, rows, len(data))):
            raise FormatError(
                f"{what} has {len(data)} bytes, expected {expected}", where=self.path, reason="index-block-length"
            )
        payload.check(form, tensor, rows, data, chain in self._scales, what, self.path)
        name, stored = codec.choose(data) if form.kind == "raw" and self._compress else ("none", data)
        with writing(self.path):
            at = self._spool.tell()
            self._spool.write(stored)
        block = Stored(replace(form, codec=name), at, len(stored), len(data), blake3.blake3(stored).digest())
        self._blocks.setdefault(chain, []).append(block)

    def attach(self, name: str, data: bytes) -> None:
        """Add a file that travels along, under a relative name."""
        self._files[name] = data

    def finish(
        self,
        order: Sequence[tuple[int, float]],
        *,
        aliases: Mapping[str, str] | None = None,
        curves: Sequence[Curve] = (),
        extra: Mapping[str, Any] | None = None,
        volume_size: int | None = None,
    ) -> str:
        """Write the file: raw blocks as the tensors are listed, then the chains' blocks in ``order``.

        Args:
            order: (chain, worth) for each residual block; the first time a chain is named means its level 0.
            aliases: names of tied tensors, each with the name of the tensor that it is.
            extra: free-form values for whoever wants them: recipe, provenance.
            volume_size: bytes that an object may have; a larger file becomes several. None: it is one.

        Returns:
            The root digest, 64 hexadecimal digits.
        """
        raw = [t.first_chain for t in self.tensors if not t.packed]
        rows = [(chain, 0, 0.0, self._take(chain, 0)) for chain in raw]
        used: dict[int, int] = {}
        for chain, worth in order:
            level = used.get(chain, 0)
            rows.append((chain, level, worth, self._take(chain, level)))
            used[chain] = level + 1
        for chain, blocks in self._blocks.items():
            if (tensor := self._tensor(chain)).packed and used.get(chain, 0) != len(blocks):
                raise FormatError(
                    f"the order names {used.get(chain, 0)} of the {len(blocks)} levels of {tensor.name}; "
                    "put only what the file shall hold",
                    where=self.path,
                    reason="index-missing",
                )

        def read(block: Stored) -> bytes:
            self._spool.seek(block.at)
            return self._spool.read(block.stored)

        attachments, write_files = pack_files(self._files)
        content = Content(
            Metadata(WRITER, self.tensors, (), aliases or {}, attachments, tuple(curves), extra or {}),
            rows,
            len(raw),
            write_files,
            in_order(read),
        )
        return lay_down(self.path, content, volume_size).root

    def _tensor(self, chain: int) -> Tensor:
        if not 0 <= chain < self._n_chains:
            what = f"there is no chain {chain}, only {self._n_chains}"
            raise FormatError(what, where=self.path, reason="index-chain")
        return self.tensors[int(self._chains.at(chain).tensor)]

    def _take(self, chain: int, level: int) -> Stored:
        blocks = self._blocks.get(chain, ())
        if level >= len(blocks):
            what = f"{self._tensor(chain).name} has no level {level}"
            raise FormatError(what, where=self.path, reason="index-missing")
        return blocks[level]


def rewrite(
    container: Container,
    path: str | os.PathLike[str],
    *,
    order: Sequence[tuple[int, float]] | None = None,
    curves: Sequence[Curve] | None = None,
    extra: Mapping[str, Any] | None = None,
    volume_size: int | None = None,
) -> str:
    """Write a file again with another order, curves or extra values; its blocks are copied as they are.

    Args:
        order: (chain, worth) for every residual block, as `Writer.finish` takes it; None keeps theirs.
        volume_size: as of `Writer.finish`.

    Returns:
        The new root digest: the head changed.

    Raises:
        TruncatedError: the container is a prefix file. FormatError: the order does not name every block once.
    """
    if container.available_blocks < len(container):
        raise container.missing(container.available_blocks)
    chain = container.index.chain.tolist()
    rows = [
        (chain[b.number], b.level, b.worth, Stored(b.form, b.offset, b.stored, b.length, b.digest))
        for b in map(container.block, range(len(container)))
    ]
    meta = container.metadata
    attachments, write_files = pack_files({a.name: container.attachment(a.name) for a in meta.attachments})
    content = Content(
        replace(
            meta,
            writer=WRITER,
            attachments=attachments,
            curves=meta.curves if curves is None else tuple(curves),
            extra=meta.extra if extra is None else extra,
        ),
        rows if order is None else _reordered(rows, container.index.required, order, os.fspath(path)),
        container.index.required,
        write_files,
        in_order(lambda block: bytes(container.read(block.at, block.stored))),
    )
    return lay_down(os.fspath(path), content, volume_size).root


def _reordered(rows: list[Row], required: int, order: Sequence[tuple[int, float]], path: str) -> list[Row]:
    block = {(chain, level): stored for chain, level, _, stored in rows[required:]}
    used: dict[int, int] = {}
    out = rows[:required]
    for chain, worth in order:
        level = used.get(chain, 0)
        used[chain] = level + 1
        if (chain, level) not in block:
            raise FormatError(f"the file has no level {level} of chain {chain}", where=path, reason="index-missing")
        out.append((chain, level, worth, block[chain, level]))
    if len(out) != len(rows):
        what = f"the order names {len(out) - required} of {len(block)} residual blocks"
        raise FormatError(what, where=path, reason="index-missing")
    return out
