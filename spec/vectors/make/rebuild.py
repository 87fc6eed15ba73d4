"""The value of a tensor, element by element as spec §6.3 writes it down: slow, and easy to check by eye.

Python's float is binary64, and each of its operations rounds once, to nearest, ties to even.
"""

import struct
from fractions import Fraction
from typing import Any

from .file import File


def e4m3(code: int) -> float:
    """§8.1."""
    sign, e, m = (-1.0 if code >> 7 else 1.0), code >> 3 & 15, code & 7
    return sign * m * 2.0**-9 if e == 0 else sign * (8 + m) * 2.0 ** (e - 10)


def floats(data: bytes, dtype: str) -> list[float]:
    """Elements as binary64."""
    if dtype == "F8_E4M3":
        return [e4m3(code) for code in data]
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    code = {"F32": "f", "F16": "e"}[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data))


#: Bits of the significand, and the exponent of the smallest normal number.
NARROW = {"F32": (24, -126), "F16": (11, -14), "BF16": (8, -126)}


def element(value: float, dtype: str) -> bytes:
    """One element, rounded once: by exact fractions, so that no third type can come in between."""
    if dtype == "F64":
        return struct.pack("<d", value)
    precision, least = NARROW[dtype]
    sign = struct.pack("<d", value)[7] >> 7
    size = Fraction(abs(value))
    exponent = least
    while size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    steps = round(size / Fraction(2) ** (exponent - precision + 1))  # round() of a Fraction takes ties to even
    # Biased exponent and significand as one number: a carry out of the significand raises the exponent, as it should.
    code = ((exponent - least) << (precision - 1)) + steps
    width = {"F32": 32, "F16": 16, "BF16": 16}[dtype]
    infinite = ((1 << (width - precision)) - 1) << (precision - 1)
    return (sign << (width - 1) | min(code, infinite)).to_bytes(width // 8, "little")


def chain_total(forms: list[dict[str, Any]], payloads: list[bytes], rows: int, columns: int) -> list[list[float]]:
    """The sum over the levels of one chain, before row and column scales."""
    total = [[0.0] * columns for _ in range(rows)]
    magnitude = [[0.0] * columns for _ in range(rows)]
    for form, data in zip(forms, payloads, strict=True):
        if form["kind"] == "sparse":
            _add_entries(total, data, rows)
            continue
        width = 0 if form["kind"] == "lowrank" else (columns + 7) // 8
        if form["kind"] == "plane":
            magnitude = [[m / 2 for m in row] for row in magnitude]
        else:
            magnitude = _product(form, data[rows * width :], rows, columns)
        for r in range(rows):
            for n in range(columns):
                minus = width and not data[r * width + n // 8] >> n % 8 & 1
                total[r][n] = total[r][n] + (-magnitude[r][n] if minus else magnitude[r][n])
    return total


def _product(form: dict[str, Any], data: bytes, rows: int, columns: int) -> list[list[float]]:
    rank, size = form["rank"], {"F16": 2, "F8_E4M3": 1}[form["factors"]]
    v_at, s_at = rows * rank * size, (rows + columns) * rank * size
    u, v = floats(data[:v_at], form["factors"]), floats(data[v_at:s_at], form["factors"])
    scale = floats(data[s_at:], "F32") if form["factors"] == "F8_E4M3" else [1.0] * rank
    out = []
    for r in range(rows):
        row = []
        for n in range(columns):
            magnitude = 0.0
            for i in range(rank):
                magnitude = magnitude + (u[r * rank + i] * scale[i]) * v[n * rank + i]
            row.append(magnitude)
        out.append(row)
    return out


def _add_entries(total: list[list[float]], data: bytes, rows: int) -> None:
    tiles = (rows + 63) // 64
    first = 4 + 4 * tiles + 2 * rows
    count = (len(data) - first) // 3
    scale = floats(data[:4], "F32")[0]
    starts = struct.unpack_from(f"<{tiles}I", data, 4)
    offsets = struct.unpack_from(f"<{rows}H", data, 4 + 4 * tiles)
    columns = struct.unpack_from(f"<{count}H", data, first)
    begin = [starts[r // 64] + offsets[r] for r in range(rows)] + [count]
    for r in range(rows):
        for k in range(begin[r], begin[r + 1]):
            total[r][columns[k]] = total[r][columns[k]] + scale * e4m3(data[first + 2 * count + k])


def rebuild(file: File, number: int, blocks: int) -> tuple[bytes, list[int]]:
    """Tensor ``number`` with the first ``blocks`` blocks loaded: its bytes and the shape of the model's parameter."""
    tensor, first = file.tensors[number], first_chain(file, number)
    held = [block for block in file.blocks[:blocks] if block.chain >= first]
    if "group_rows" not in tensor:
        return next(block.data for block in held if block.chain == first), tensor["shape"]
    columns, rows, group = tensor["shape"][-1], n_rows(tensor), tensor["group_rows"]
    row_scale = scale_vector(file, tensor["row_scale"])
    column_scale = scale_vector(file, tensor["col_scale"])
    values: list[float] = []
    for g in range(-(-rows // group)):
        own = [block for block in held if block.chain == first + g]
        height = min(group, rows - g * group)
        forms = [file.forms[block.form] for block in own]
        total = chain_total(forms, [block.data for block in own], height, columns)
        at = g * columns if len(column_scale) > columns else 0
        for r in range(height):
            values += [(total[r][n] * row_scale[g * group + r]) * column_scale[at + n] for n in range(columns)]
    shape = list(tensor["shape"])
    if tensor.get("transposed"):
        height, values = shape[-2], transposed(values, shape[-2], columns)
        shape[-2:] = [columns, height]
    return b"".join(element(value, tensor["dtype"]) for value in values), shape


def transposed(values: list[float], rows: int, columns: int) -> list[float]:
    """Each matrix of a stack with rows and columns exchanged."""
    size = rows * columns
    return [
        values[s + r * columns + n] for s in range(0, len(values), size) for n in range(columns) for r in range(rows)
    ]


def n_rows(tensor: dict[str, Any]) -> int:
    """Rows of a tensor seen as a matrix."""
    rows = 1
    for size in tensor["shape"][:-1]:
        rows *= size
    return rows


def n_chains(tensor: dict[str, Any]) -> int:
    """How many chains a tensor has."""
    return -(-n_rows(tensor) // tensor["group_rows"]) if "group_rows" in tensor else 1


def first_chain(file: File, number: int) -> int:
    """The number of a tensor's first chain."""
    return sum(n_chains(tensor) for tensor in file.tensors[:number])


def scale_vector(file: File, number: int) -> list[float]:
    """A scale vector as binary64."""
    return floats(rebuild(file, number, len(file.blocks))[0], file.tensors[number]["dtype"])
