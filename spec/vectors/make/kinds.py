"""Payloads of the block kinds of spec §6, and the tensors that most vectors are made of."""

from typing import Any

from .bits import Noise, f16, f32, u16, u32
from .file import Block, File

RAW = {"kind": "raw", "codec": "none"}
RAW_ZSTD = {"kind": "raw", "codec": "zstd"}
PLANE = {"kind": "plane", "codec": "none"}
SPARSE = {"kind": "sparse", "codec": "none"}


def sign_form(rank: int, factors: str = "F16", codec: str = "none") -> dict[str, Any]:
    """A form of kind ``sign``."""
    return {"kind": "sign", "codec": codec, "rank": rank, "factors": factors}


def lowrank_form(rank: int, factors: str = "F16", codec: str = "none") -> dict[str, Any]:
    """A form of kind ``lowrank``."""
    return {"kind": "lowrank", "codec": codec, "rank": rank, "factors": factors}


def factors(noise: Noise, rows: int, columns: int, form: dict[str, Any]) -> bytes:
    """U, V and, for e4m3, the scales."""
    rank = form["rank"]
    if form["factors"] == "F16":
        return noise.halves((rows + columns) * rank)
    scales = f32(*((noise.bits(8) + 1) / 300 for _ in range(rank)))
    return noise.codes((rows + columns) * rank) + scales


def sparse(scale: float, rows: int, entries: dict[tuple[int, int], int]) -> bytes:
    """A sparse block of entries (row, column) to e4m3 code."""
    places = sorted(entries)
    begin = [sum(place[0] < row for place in places) for row in range(rows)]
    starts = [begin[row] for row in range(0, rows, 64)]
    offsets = [begin[row] - starts[row // 64] for row in range(rows)]
    return sparse_of(scale, starts, offsets, [column for _, column in places], bytes(entries[p] for p in places))


def sparse_of(scale: float, starts: list[int], offsets: list[int], columns: list[int], values: bytes) -> bytes:
    """A sparse block of these five arrays, right or wrong."""
    return f32(scale) + u32(*starts) + u16(*offsets) + u16(*columns) + values


def payload(noise: Noise, rows: int, columns: int, form: dict[str, Any]) -> bytes:
    """A sound payload of a form that a packed tensor may have."""
    if form["kind"] == "sparse":
        count = max(1, rows * columns // 8)
        places = {(noise.bits(32) % rows, noise.bits(32) % columns) for _ in range(count)}
        return sparse((noise.bits(8) + 1) / 200, rows, {place: noise.codes(1)[0] for place in sorted(places)})
    signs = b"" if form["kind"] == "lowrank" else noise.signs(rows, columns)
    return signs + (b"" if form["kind"] == "plane" else factors(noise, rows, columns, form))


def scale_values(noise: Noise, count: int) -> list[float]:
    """Positive numbers of few bits, which every scale type holds."""
    return [(noise.bits(6) + 16) / 32 for _ in range(count)]


def packed(
    shape: list[int],
    chains: list[list[dict[str, Any]]],
    *,
    seed: int,
    dtype: str = "F16",
    group_rows: int | None = None,
    **more: Any,
) -> File:
    """A file of one packed tensor ``w`` with noise in it.

    Args:
        chains: for each row group the forms of its blocks; written level by level, the chains in turn.
        more: further keys of the tensor map.
    """
    noise, columns = Noise(seed), shape[-1]
    rows = 1
    for size in shape[:-1]:
        rows *= size
    group = rows if group_rows is None else group_rows
    tensor = {"name": "w", "shape": shape, "dtype": dtype, "group_rows": group, "row_scale": 0, "col_scale": 1}
    scales = [
        {"name": "w.rows", "shape": [rows], "dtype": "F32"},
        {"name": "w.columns", "shape": [columns], "dtype": "F16"},
    ]
    file = File(tensors=[*scales, tensor | more], forms=[RAW])
    file.blocks = [
        Block(0, 0, 0, f32(*scale_values(noise, rows))),
        Block(1, 0, 0, f16(*scale_values(noise, columns))),
    ]
    for level in range(max(map(len, chains), default=0)):
        for group_number, forms in enumerate(chains):
            if level < len(forms):
                height = min(group, rows - group_number * group)
                if forms[level] not in file.forms:
                    file.forms.append(forms[level])
                data = payload(noise, height, columns, forms[level])
                worth = 1 / (1 + level) + group_number / 64
                file.blocks.append(Block(2 + group_number, level, file.forms.index(forms[level]), data, worth))
    return file
