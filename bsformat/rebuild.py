"""The value of a packed tensor in float64: the readable reference for every runtime (spec §6.3)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from . import payload
from .metadata import Form, Tensor

Array = npt.NDArray[Any]


def block_values(form: Form, tensor: Tensor, rows: int, data: bytes | memoryview) -> Array:
    """S ⊙ (U diag(scale) Vᵀ) of one sign block, unscaled: float64 [rows, columns].

    The products and sums are taken in the order of spec §6.3, so that every reader gets the same bits.
    """
    parts = payload.split(form, tensor, rows, data)
    u = payload.as_float(np.ascontiguousarray(parts.u).view(np.uint8).reshape(-1), form.factors).reshape(parts.u.shape)
    v = payload.as_float(np.ascontiguousarray(parts.v).view(np.uint8).reshape(-1), form.factors).reshape(parts.v.shape)
    scale = np.ones(form.rank) if parts.scale is None else parts.scale.astype(np.float64)
    magnitude = np.zeros((rows, tensor.columns))
    for k in range(form.rank):
        magnitude += (u[:, k] * scale[k])[:, None] * v[None, :, k]
    bits = np.unpackbits(parts.signs, axis=1, count=tensor.columns, bitorder="little")
    return np.where(bits == 1, magnitude, -magnitude)


def round_to(values: Array, dtype: str) -> Array:
    """Round float64 once, to the nearest value of a tensor's type, ties to even (spec §6.3).

    Returns:
        float32 for ``F32`` and ``BF16`` (whose values it holds exactly), float16 for ``F16``, float64 for ``F64``.
    """
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])
    # Through float32 rounded to odd, so that the second rounding sees that the first one cut something off.
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32).copy()
    exact = near.astype(np.float64)
    inexact = (exact != values) & np.isfinite(near)
    away = np.abs(exact) > np.abs(values)
    bits[inexact & away] -= 1
    bits[inexact] |= 1
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(near), rounded.view(np.float32), near)


def chain_values(
    tensor: Tensor,
    rows: int,
    blocks: list[tuple[Form, bytes]],
    row_scale: Array,
    col_scale: Array,
) -> Array:
    """The part of a packed tensor that one chain holds: float64 [rows, columns]; zeros where it has no block.

    Args:
        blocks: form and decoded payload of levels 0, 1, … as far as they are loaded.
        row_scale: float64 [rows], the chain's part of it. col_scale: float64 [columns].
    """
    total = np.zeros((rows, tensor.columns))
    for form, data in blocks:
        total += block_values(form, tensor, rows, data)
    return total * row_scale[:, None] * col_scale[None, :]
