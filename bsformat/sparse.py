"""The payload of a sparse block: a few elements of a row group by position and value (spec §6.6)."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .errors import FormatError

Array = npt.NDArray[Any]

#: Rows that share one 32-bit start; within them 16 bits say where a row begins.
TILE: Final = 64


@dataclass(frozen=True, slots=True)
class SparsePayload:
    """The parts of a sparse block of M rows with n entries, as views of its bytes.

    Attributes:
        scale: what every value is multiplied by.
        starts: uint32 [ceil(M / 64)]; the entry at which rows 0, 64, 128, … begin.
        offsets: uint16 [M]; row i begins at entry starts[i // 64] + offsets[i] and ends where the next one begins.
        columns: uint16 [n]; the column of each entry, rising within a row.
        values: uint8 [n] holding e4m3.
    """

    scale: float
    starts: Array
    offsets: Array
    columns: Array
    values: Array

    def row_starts(self) -> Array:
        """Where each row begins, and n at the end: int64 [M + 1]."""
        begin = np.repeat(self.starts.astype(np.int64), TILE)[: len(self.offsets)] + self.offsets
        return np.append(begin, len(self.columns))


def fixed_bytes(rows: int | Array) -> Any:
    """Bytes of a payload before its entries: the scale, and what says where the rows begin."""
    return 4 + 4 * -(-rows // TILE) + 2 * rows


def nearest_length(rows: int | Array, columns: int | Array, length: int | Array) -> Any:
    """The greatest length of a payload, 1 to rows · columns entries of 3 bytes, that is not above ``length``.

    That is ``length`` itself where it can be one; where it is below all of them, the smallest. Works on arrays too.
    """
    fixed = fixed_bytes(rows)
    return fixed + 3 * np.clip((np.asarray(length, np.int64) - fixed) // 3, 1, np.asarray(rows, np.int64) * columns)


def split(rows: int, data: bytes | memoryview) -> SparsePayload:
    """Cut a payload, already of a right length, into its parts."""
    fixed, tiles = fixed_bytes(rows), -(-rows // TILE)
    count = (len(data) - fixed) // 3
    return SparsePayload(
        float(np.frombuffer(data, "<f4", 1)[0]),
        np.frombuffer(data, "<u4", tiles, 4),
        np.frombuffer(data, "<u2", rows, 4 + 4 * tiles),
        np.frombuffer(data, "<u2", count, fixed),
        np.frombuffer(data, np.uint8, count, fixed + 2 * count),
    )


def join(rows: int, scale: float, row: Array, column: Array, values: Array) -> bytes:
    """The payload of a sparse block from its entries, which may come in any order.

    Args:
        rows: M, the rows of the chain.
        scale: what every value is multiplied by.
        row, column: integers [n], the place of each entry; no two are the same.
        values: uint8 [n] holding e4m3.

    Raises:
        FormatError: reason ``block-rows``: there is no entry, a row does not exist, or 64 rows hold more entries than
            16 bits can count; ``block-columns``: a column has more than 16 bits, or two entries have one place.
    """
    row, column = np.asarray(row, np.int64), np.asarray(column, np.int64)
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    begin = np.searchsorted(row, np.arange(rows))
    starts = begin[::TILE]
    offsets = begin - np.repeat(starts, TILE)[:rows]
    if not len(row) or row[0] < 0 or row[-1] >= rows or offsets.max() >= 1 << 16:
        raise FormatError(
            f"{len(row)} entries in {rows} rows, at most {offsets.max()} before the last row of {TILE}: expected at "
            f"least one, all in rows from 0 to {rows - 1}, and less than {1 << 16} there; store fewer",
            reason="block-rows",
        )
    if column.min() < 0 or column.max() >= 1 << 16 or ((np.diff(row) == 0) & (np.diff(column) == 0)).any():
        raise FormatError(
            "two entries of a sparse block have the same place, or a column is not within 16 bits",
            reason="block-columns",
        )
    parts = (np.array([scale], "<f4"), starts.astype("<u4"), offsets.astype("<u2"), column.astype("<u2"))
    return b"".join(part.tobytes() for part in parts) + np.asarray(values, np.uint8)[order].tobytes()


def check(parts: SparsePayload, columns: int, what: str, where: str) -> None:
    """Refuse rows that do not follow each other, columns that do not rise or do not exist, and values not finite.

    What passes never makes a reader look outside its entries, or outside a vector of ``columns`` elements.

    Raises:
        FormatError: reason ``block-rows``, ``block-columns`` or ``block-values``.
    """
    begin = parts.row_starts()
    if parts.starts[0] or parts.offsets[::TILE].any() or (begin[1:] < begin[:-1]).any():
        raise FormatError(
            f"{what}: the rows do not begin at 0, do not follow each other, or end beyond the "
            f"{len(parts.columns)} entries",
            where=where,
            reason="block-rows",
        )
    rises = parts.columns[1:] > parts.columns[:-1]
    inner = begin[(begin > 0) & (begin < len(parts.columns))]
    rises[inner - 1] = True  # a new row begins there
    if not rises.all() or int(parts.columns.max()) >= columns:
        raise FormatError(
            f"{what}: the columns of a row do not rise, or are not below {columns}",
            where=where,
            reason="block-columns",
        )
    if not np.isfinite(parts.scale) or ((parts.values & 0x7F) == 0x7F).any():
        raise FormatError(f"{what}: the scale or a value is not finite", where=where, reason="block-values")
