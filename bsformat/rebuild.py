"""The value of a packed tensor in float64: the readable reference for every runtime (spec §6.3)."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from . import payload, sparse
from .metadata import Form, Tensor

Array = npt.NDArray[Any]

#: The eight signs of each byte, least significant bit first: float64 [256, 8].
_SIGNS: Array = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") * 2.0 - 1.0


def magnitudes(form: Form, tensor: Tensor, rows: int, data: bytes | memoryview) -> Array:
    """U diag(scale) Vᵀ of one sign or lowrank block, unscaled: float64 [rows, columns].

    The products and sums are taken in the order of spec §6.3, so that every reader gets the same bits.
    """
    parts = payload.split(form, tensor, rows, data)
    u = payload.as_float(np.ascontiguousarray(parts.u).view(np.uint8).reshape(-1), form.factors).reshape(parts.u.shape)
    v = payload.as_float(np.ascontiguousarray(parts.v).view(np.uint8).reshape(-1), form.factors).reshape(parts.v.shape)
    left = u if parts.scale is None else u * parts.scale.astype(np.float64)
    right = np.ascontiguousarray(v.T)
    total = np.zeros((rows, tensor.columns))
    for k in range(form.rank):
        total += left[:, k, None] * right[k]
    return total


def block_values(form: Form, tensor: Tensor, rows: int, data: bytes | memoryview, step: Array | None = None) -> Array:
    """What one block adds to the sum, unscaled: float64 [rows, columns].

    Args:
        step: float64 [rows, columns], the magnitudes that the signs of a sign block or plane go with: for a plane,
            half of those of the level before it. A sign block's own ones where it is None.

    Raises:
        ValueError: a plane without them.
    """
    if form.kind == "lowrank":
        return magnitudes(form, tensor, rows, data)
    if form.kind == "sparse":
        parts = sparse.split(rows, data)
        values = np.zeros((rows, tensor.columns))
        row = np.repeat(np.arange(rows), np.diff(parts.row_starts()))
        values[row, parts.columns] = parts.scale * payload.E4M3[parts.values]
        return values
    if step is None:
        if form.kind == "plane":
            raise ValueError("a plane has no magnitudes of its own: give those of the level before it, halved")
        step = magnitudes(form, tensor, rows, data)
    signs = payload.split(form, tensor, rows, data).signs
    signed: Array = step * _SIGNS[signs].reshape(rows, -1)[:, : tensor.columns]
    return signed


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
    for values in level_values(tensor, rows, blocks):
        total += values
    return total * row_scale[:, None] * col_scale[None, :]


def level_values(tensor: Tensor, rows: int, blocks: Iterable[tuple[Form, bytes]]) -> Iterator[Array]:
    """What each level of a chain adds to the sum, unscaled: float64 [rows, columns].

    Args:
        blocks: form and decoded payload of levels 0, 1, …; taken one by one.
    """
    step: Array | None = None
    for form, data in blocks:
        if form.kind == "plane" and step is not None:
            step = step / 2
        elif form.kind == "sign":
            step = magnitudes(form, tensor, rows, data)
        yield block_values(form, tensor, rows, data, step)
