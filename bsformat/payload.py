"""What the decoded bytes of a block are, and which of them are refused (spec §6)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import sparse
from .errors import FormatError
from .metadata import Form, Tensor
from .registry import DTYPE_BYTES

Array = npt.NDArray[Any]


def scale_bytes(form: Form) -> int:
    """Bytes of the per-rank scales of a block: one float32 each, for 8-bit factors only."""
    return 4 * form.rank if form.factors == "F8_E4M3" else 0


def length(form: Form, tensor: Tensor, rows: int, near: int = 0) -> int:
    """Bytes of the decoded block of ``form`` for ``rows`` rows of ``tensor``.

    Those of a sparse block depend on its number of entries: of all that it can have, the greatest that is not above
    ``near`` bytes, or else the smallest. So a length is right where ``length(…, near=length)`` returns it.
    """
    if form.kind == "raw":
        return tensor.dense_bytes
    columns = tensor.columns
    if form.kind == "sparse":
        return int(sparse.nearest_length(rows, columns, near))
    signs = rows * ((columns + 7) // 8) if form.has_signs else 0
    if not form.has_factors:
        return signs
    return signs + (rows + columns) * form.rank * DTYPE_BYTES[form.factors] + scale_bytes(form)


@dataclass(frozen=True, slots=True)
class SignPayload:
    """The parts of a block that has signs, factors or both, as views of its bytes.

    Attributes:
        signs: uint8 [rows, ceil(columns / 8)]; bit j % 8 of byte j // 8 is column j, 1 for +1 and 0 for −1. No bytes
            in a row of a lowrank block.
        u, v: the factors, [rows, rank] and [columns, rank]: float16, or uint8 holding e4m3. Rank 0 in a plane.
        scale: float32 [rank], or None for float16 factors and planes.
    """

    signs: Array
    u: Array
    v: Array
    scale: Array | None


def split(form: Form, tensor: Tensor, rows: int, data: bytes | memoryview) -> SignPayload:
    """Cut the payload of a sign, plane or lowrank block, already of the right `length`, into its parts."""
    columns, rank = tensor.columns, form.rank
    kind = np.dtype("u1") if form.factors == "F8_E4M3" else np.dtype("<f2")
    row_bytes = (columns + 7) // 8 if form.has_signs else 0
    at = rows * row_bytes
    signs = np.frombuffer(data, np.uint8, at).reshape(rows, row_bytes)
    u = np.frombuffer(data, kind, rows * rank, at).reshape(rows, rank)
    at += u.nbytes
    v = np.frombuffer(data, kind, columns * rank, at).reshape(columns, rank)
    at += v.nbytes
    scale = np.frombuffer(data, "<f4", rank, at) if scale_bytes(form) else None
    return SignPayload(signs, u, v, scale)


def join(signs: Array, u: Array, v: Array, scale: Array | None) -> bytes:
    """The payload of a sign block from its parts, of the types and shapes of `SignPayload`."""
    return join_plane(signs) + join_lowrank(u, v, scale)


def join_plane(signs: Array) -> bytes:
    """The payload of a plane: uint8 [rows, ceil(columns / 8)], as in `SignPayload`."""
    return np.ascontiguousarray(signs, np.uint8).tobytes()


def join_lowrank(u: Array, v: Array, scale: Array | None) -> bytes:
    """The payload of a lowrank block from its factors, of the types and shapes of `SignPayload`."""
    parts = [u, v] + ([] if scale is None else [scale])
    return b"".join(np.ascontiguousarray(p, p.dtype.newbyteorder("<")).tobytes() for p in parts)


def check(
    form: Form, tensor: Tensor, rows: int, data: bytes | memoryview, is_scale: bool, what: str, where: str
) -> None:
    """Refuse padding bits that are not zero, numbers that are not finite, and entries that are out of place.

    Args:
        is_scale: whether the tensor is the row or column scale of another one.

    Raises:
        FormatError: reason ``block-padding``, ``block-values``, ``block-rows`` or ``block-columns``.
    """
    if form.kind == "raw":
        if is_scale:
            elements = as_float(np.frombuffer(data, np.uint8), tensor.dtype)
            if not np.isfinite(elements).all():
                raise FormatError(f"{what}: a scale is not finite", where=where, reason="block-values")
        return
    if form.kind == "sparse":
        sparse.check(sparse.split(rows, data), tensor.columns, what, where)
        return
    parts = split(form, tensor, rows, data)
    if form.has_signs and tensor.columns % 8 and (parts.signs[:, -1] >> (tensor.columns % 8)).any():
        raise FormatError(
            f"{what}: the padding bits after column {tensor.columns - 1} are not zero",
            where=where,
            reason="block-padding",
        )
    named = [("u", parts.u), ("v", parts.v)] + ([] if parts.scale is None else [("scale", parts.scale)])
    for name, values in named:
        if not _finite(values):
            raise FormatError(f"{what}: {name} has a value that is not finite", where=where, reason="block-values")


def _finite(values: Array) -> bool:
    """Whether all of some factors, float16, float32 or uint8 holding e4m3, are finite."""
    if values.dtype != np.uint8:
        return bool(np.isfinite(values).all())
    codes = values.tobytes()  # two searches of bytes are several times faster than arithmetic
    return b"\x7f" not in codes and b"\xff" not in codes


def as_float(data: Array, dtype: str) -> Array:
    """Elements of a floating type, as stored (uint8, flat), in float64 exactly."""
    if dtype == "BF16":
        return as_float((data.view("<u2").astype("<u4") << 16).view(np.uint8), "F32")
    if dtype == "F8_E4M3":
        return E4M3[data]
    with np.errstate(invalid="ignore"):  # a signalling NaN is no reason for a warning
        return data.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def _e4m3_table() -> Array:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -value, value)


#: The value of each of the 256 codes of e4m3 (one sign, four exponent and three mantissa bits; no infinities).
E4M3 = _e4m3_table()
