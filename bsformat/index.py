"""The index section: one row for each block, as columns of fixed width, little-endian (spec §5)."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from . import payload, registry
from .chains import Chains, Parts
from .errors import FormatError
from .metadata import Form, Metadata
from .sparse import nearest_length

_HEADER: Final = struct.Struct("<QQ")
#: Name and element type of each column, in the order in which they are stored.
COLUMNS: Final = (
    ("offset", "<u8"),
    ("stored", "<u8"),
    ("length", "<u8"),
    ("digest", "V32"),
    ("worth", "<f4"),
    ("chain", "<u4"),
    ("level", "<u2"),
    ("form", "<u2"),
)
ROW_BYTES: Final = sum(np.dtype(kind).itemsize for _, kind in COLUMNS)

_SIGN, _PLANE, _SPARSE = map(registry.KINDS.index, ("sign", "plane", "sparse"))

Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Index:
    """The blocks of a file in their order; every column has one entry a block.

    Attributes:
        required: how many leading blocks must be resident whatever the budget.
        offset, stored: where the block lies in the file, bytes; ``stored`` is its length there. (The section counts
            offsets from the first block, so that they do not depend on its own compressed length.)
        length: bytes after decoding, which are the bytes it occupies when resident.
        digest: BLAKE3 of the stored bytes.
        worth: estimated drop of the loss per byte; 0 for required blocks.
        chain, level: which chain it belongs to, and its position in it from 0.
        form: number of its form in the metadata.
    """

    required: int
    offset: Column
    stored: Column
    length: Column
    digest: Column
    worth: Column
    chain: Column
    level: Column
    form: Column

    def __len__(self) -> int:
        return len(self.offset)


def encode(index: Index) -> bytes:
    """The index section, before compression. ``index.offset`` counts from the first block, as in the file."""
    columns = [np.ascontiguousarray(getattr(index, name), dtype=kind).tobytes() for name, kind in COLUMNS]
    return _HEADER.pack(len(index), index.required) + b"".join(columns)


def decode(data: bytes, meta: Metadata, blocks_offset: int, file_length: int, where: str) -> Index:
    """Read and check the decoded index section against the metadata and the superblock.

    Args:
        blocks_offset: where the first block must start.
        file_length: where the last block must end.

    Raises:
        FormatError: the ``index-…`` reasons of spec §9, each naming the first block at fault.
    """
    if len(data) < _HEADER.size:
        raise _bad("index-length", f"has {len(data)} bytes, fewer than its {_HEADER.size}-byte header", where)
    count, required = _HEADER.unpack_from(data)
    if not 0 < count <= registry.MAX_BLOCKS or required > count:
        raise _bad("index-length", f"declares {count} blocks, {required} of them required", where)
    if len(data) != _HEADER.size + count * ROW_BYTES:
        raise _bad(
            "index-length",
            f"has {len(data)} bytes, expected {_HEADER.size + count * ROW_BYTES} for {count} blocks",
            where,
        )
    columns: dict[str, Column] = {}
    at = _HEADER.size
    for name, kind in COLUMNS:
        columns[name] = np.frombuffer(data, dtype=kind, count=count, offset=at)
        at += columns[name].nbytes
    if (i := _first(columns["offset"] > file_length)) is not None:
        raise _bad("index-offset", f"block {i} starts {columns['offset'][i]} bytes in, beyond the file", where)
    columns["offset"] = columns["offset"] + np.uint64(blocks_offset)
    index = Index(required, **columns)
    _check_ranges(index, blocks_offset, file_length, where)
    _check_references(index, meta, where)
    parts = Chains(meta).at(index.chain)
    _check_chains(index, meta, parts, where)
    _check_lengths(index, meta, parts, where)
    return index


def _bad(reason: str, message: str, where: str) -> FormatError:
    return FormatError(f"index: {message}", where=where, reason=reason)


def _first(wrong: npt.NDArray[np.bool_]) -> int | None:
    return int(np.argmax(wrong)) if wrong.any() else None


def _check_ranges(index: Index, blocks_offset: int, file_length: int, where: str) -> None:
    for column, low, high in (
        (index.offset, blocks_offset, file_length),
        (index.stored, 1, min(file_length, registry.MAX_BLOCK_BYTES)),
        (index.length, 1, registry.MAX_BLOCK_BYTES),
    ):
        if (i := _first((column < low) | (column > high))) is not None:
            raise _bad("index-offset", f"block {i} has the value {int(column[i])}, expected {low} to {high}", where)
    # Every value is below 2^62 now, so the sums below cannot wrap.
    end = index.offset + index.stored
    mask = np.uint64(registry.ALIGNMENT - 1)
    expected = np.concatenate([np.array([blocks_offset], "<u8"), (end[:-1] + mask) & ~mask])
    if (i := _first(index.offset != expected)) is not None:
        raise _bad(
            "index-offset",
            f"block {i} starts at {int(index.offset[i])}, expected {int(expected[i])}: blocks leave no hole "
            "and do not overlap",
            where,
        )
    if int(end[-1]) != file_length:
        raise _bad("index-offset", f"the last block ends at {int(end[-1])}, but the file at {file_length}", where)


def _check_references(index: Index, meta: Metadata, where: str) -> None:
    if (i := _first(index.chain >= meta.n_chains)) is not None:
        raise _bad("index-chain", f"block {i} is of chain {index.chain[i]}, but there are {meta.n_chains}", where)
    if (i := _first(index.form >= len(meta.forms))) is not None:
        raise _bad("index-form", f"block {i} has form {index.form[i]}, but there are {len(meta.forms)}", where)


def _check_chains(index: Index, meta: Metadata, parts: Parts, where: str) -> None:
    # Of several faults the one that stands first in spec §9.3 is named.
    raw = parts.raw_bytes > 0
    raw_form = np.array([f.kind == "raw" for f in meta.forms], bool)
    if (i := _first(raw != raw_form[index.form])) is not None:
        raise _bad(
            "index-form",
            f"block {i} is of kind {meta.forms[int(index.form[i])].kind!r}, which does not go with its tensor",
            where,
        )
    kind = np.array([registry.KINDS.index(f.kind) for f in meta.forms], np.int8)[index.form]
    if (i := _first((kind == _SPARSE) & (parts.columns > registry.MAX_SPARSE_COLUMNS))) is not None:
        raise _bad(
            "index-form",
            f"block {i} is of kind 'sparse', which goes with at most {registry.MAX_SPARSE_COLUMNS} columns",
            where,
        )
    if (i := _first(~np.isfinite(index.worth) | (index.worth < 0))) is not None:
        raise _bad("index-worth", f"block {i} has worth {index.worth[i]}, expected a finite number from 0", where)
    order = np.argsort(index.chain, kind="stable")
    chain = index.chain[order]
    starts = np.flatnonzero(np.concatenate([[True], chain[1:] != chain[:-1]]))
    position = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    wrong = np.zeros(len(order), bool)
    wrong[order] = index.level[order] != position
    if (i := _first(wrong)) is not None:
        raise _bad(
            "index-level",
            f"block {i} is level {index.level[i]} of chain {index.chain[i]}, out of turn: levels come in order",
            where,
        )
    if (i := _first(raw & (index.level > 0))) is not None:
        raise _bad("index-level", f"block {i} is a second block of a raw tensor", where)
    # Each plane needs the sign block that it refines close before it: nothing but planes between them.
    base = np.maximum.accumulate(np.where(kind[order] != _PLANE, np.arange(len(order)), 0))
    planes = np.arange(len(order)) - base
    wrong[order] = (kind[order] == _PLANE) & (
        (chain != chain[base]) | (kind[order][base] != _SIGN) | (planes > registry.MAX_PLANES)
    )
    if (i := _first(wrong)) is not None:
        raise _bad(
            "index-plane",
            f"block {i} is a plane, but not one of the first {registry.MAX_PLANES} right after a sign block",
            where,
        )
    n_raw = int(raw.sum())
    if missing := sum(not t.packed for t in meta.tensors) - n_raw:
        raise _bad("index-missing", f"{missing} raw tensors have no block", where)
    if not raw[:n_raw].all() or index.required < n_raw:
        raise _bad(
            "index-order", f"the {n_raw} raw blocks must come first and be required; {index.required} are", where
        )


def _check_lengths(index: Index, meta: Metadata, parts: Parts, where: str) -> None:
    def of_form(value: Callable[[Form], int]) -> Column:
        return np.array([value(f) for f in meta.forms], np.int64)[index.form]

    rows, columns = parts.rows, parts.columns
    # Elements are at most 2^40, ranks 2^12 and factors 2 bytes: nothing here can pass 2^55.
    expected = of_form(lambda f: f.has_signs) * rows * ((columns + 7) // 8)
    expected += (rows + columns) * of_form(lambda f: f.rank * registry.DTYPE_BYTES.get(f.factors, 0))
    expected += of_form(payload.scale_bytes)
    expected += parts.raw_bytes
    is_sparse = of_form(lambda f: f.kind == "sparse") == 1
    expected[is_sparse] = nearest_length(rows[is_sparse], columns[is_sparse], index.length[is_sparse])
    expected = expected.astype(np.uint64)
    if (i := _first(index.length != expected)) is not None:
        raise _bad(
            "index-block-length",
            f"block {i} has {int(index.length[i])} bytes, but its form and tensor make {int(expected[i])}",
            where,
        )
    none = np.array([f.codec == "none" for f in meta.forms], bool)[index.form]
    if (i := _first(none & (index.stored != index.length))) is not None:
        raise _bad("index-block-length", f"block {i} has codec none, but its stored and decoded lengths differ", where)
    limit = index.stored * np.uint64(registry.MAX_EXPANSION) + np.uint64(registry.EXPANSION_FLOOR)
    if (i := _first(index.length > limit)) is not None:
        raise _bad(
            "index-block-length",
            f"block {i} decodes from {int(index.stored[i])} to {int(index.length[i])} bytes, beyond the limit",
            where,
        )
