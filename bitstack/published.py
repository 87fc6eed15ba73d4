"""Checkpoints as the authors of BitStack publish them (arXiv 2410.23918): safetensors with the levels of every linear
layer.

For the linear layer ``P`` with the weight W [M, N], each level ``i`` is three tensors:

    P.qweight_i   U8 [ceil(M·N / 8)]   signs of the flattened matrix, most significant bit first, 1 for +1
    P.u_i         F16 [M, k]
    P.vt_i        F16 [k, N]

and W is the sum over i of sign_i ⊙ (u_i · vt_i). Checkpoints without absolute value decomposition (the paper's
ablation) have no ``qweight_i`` anywhere: their levels are the products alone. Scales by activations were multiplied
into the weights and out of the norms before them, so there are none. Whatever else a model has is stored as
transformers stores it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bsformat import Form, payload
from bsformat.errors import ModelError
from bsformat.registry import MAX_RANK

from .safetensors_file import Entry, read_entries

Array = npt.NDArray[Any]

_PART: Final = re.compile(r"(.+)\.(qweight|u|vt|bias)_(0|[1-9]\d{0,4})")
#: Tensors that older versions of transformers stored, and that follow from the configuration.
_COMPUTED: Final = re.compile(r"(?:.+\.)?rotary_emb\.inv_freq")
#: Signs that are taken apart at a time where rows do not begin with whole bytes.
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Level:
    """The three tensors of one level; ``signs`` is None where it is a product alone."""

    signs: Entry | None
    u: Entry
    vt: Entry


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: its path in the model, M, N, and its levels."""

    path: str
    rows: int
    columns: int
    levels: tuple[Level, ...]

    def block(self, number: int) -> tuple[Form, bytes, float]:
        """A level as a block.

        Returns:
            Its form, its payload, and its squared Frobenius norm (float64). A level is the projection of what was
            left on its own factors, so that norm is by how much it lowers the squared error.

        Raises:
            ModelError: reason ``weights``: the file cannot be read, or a factor is not finite.
        """
        level = self.levels[number]
        u = _factor(level.u)
        v = np.ascontiguousarray(_factor(level.vt).T)
        form = Form("lowrank" if level.signs is None else "sign", rank=u.shape[1], factors="F16")
        wide = u.astype(np.float64), v.astype(np.float64)
        energy = float(((wide[0].T @ wide[0]) * (wide[1].T @ wide[1])).sum())
        if level.signs is None:
            return form, payload.join_lowrank(u, v, None), energy
        return form, payload.join(row_signs(level.signs.read(), self.rows, self.columns), u, v, None), energy


def _factor(entry: Entry) -> Array:
    values = np.frombuffer(entry.read(), "<f2").reshape(entry.shape)
    if not np.isfinite(values).all():
        raise _refused(entry, "has a value that is not finite")
    return values


def row_signs(flat: bytes, rows: int, columns: int) -> Array:
    """Signs of a flattened matrix, most significant bit first, as blocks have them: row by row, least significant
    first.

    Args:
        flat: ceil(rows · columns / 8) bytes. What is left over in the last one is dropped.

    Returns:
        uint8 [rows, ceil(columns / 8)]; the bits after the last column are zero.
    """
    source = np.frombuffer(flat, np.uint8)
    if columns % 8 == 0:
        return _REVERSED[source].reshape(rows, columns // 8)
    out = np.empty((rows, -(-columns // 8)), np.uint8)
    step = max(1, _CHUNK // columns)
    for first in range(0, rows, step):
        stop = min(rows, first + step)
        begin, end = first * columns, stop * columns
        bits = np.unpackbits(source[begin // 8 : -(-end // 8)])[begin % 8 :][: end - begin]
        out[first:stop] = np.packbits(bits.reshape(stop - first, columns), axis=1, bitorder="little")
    return out


_REVERSED: Final = np.packbits(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), axis=1, bitorder="little"
)[:, 0]


class Published:
    """What a checkpoint holds, by the headers of its files.

    Attributes:
        linears: the decomposed layers by their path. others: all other tensors by their name.

    Args:
        files: its safetensors files.
        shapes: of every linear layer of the model: path -> (M, N).

    Raises:
        ModelError: reason ``weights``: a file is damaged, a tensor is missing, or has another type or shape.
    """

    def __init__(self, files: Iterable[Path], shapes: Mapping[str, tuple[int, int]], where: str) -> None:
        self._where = where
        self.others: dict[str, Entry] = {}
        parts: dict[str, dict[tuple[str, int], Entry]] = {}
        for path in files:
            for entry in read_entries(path):
                found = _PART.fullmatch(entry.name)
                if found:
                    place = parts.setdefault(found[1], {})
                    key = (found[2], int(found[3]))
                    if key in place:
                        raise _refused(entry, f"is in {place[key].path.name} too")
                    place[key] = entry
                elif not _COMPUTED.fullmatch(entry.name):
                    if entry.name in self.others:
                        raise _refused(entry, f"is in {self.others[entry.name].path.name} too")
                    self.others[entry.name] = entry
        if not parts:
            what = "holds no decomposed layer: no tensor is called …u_0; bstk pack takes dense models"
            raise ModelError(what, where=where, reason="weights")
        signed = any(kind == "qweight" for own in parts.values() for kind, _ in own)
        self.linears = {path: self._linear(path, own, shapes, signed) for path, own in parts.items()}

    def _linear(
        self, path: str, own: Mapping[tuple[str, int], Entry], shapes: Mapping[str, tuple[int, int]], signed: bool
    ) -> Linear:
        if path not in shapes:
            name = next(iter(own.values())).name
            raise ModelError(f"{name}: {path} is no linear layer of this model", where=self._where, reason="weights")
        rows, columns = shapes[path]
        kinds = ("qweight", "u", "vt") if signed else ("u", "vt")
        count = 1 + max((number for kind, number in own if kind != "bias"), default=-1)
        if count > sum(kind != "bias" for kind, _ in own):  # levels are missing, and may be any number of them
            count = next(n for n in range(count) if not all((kind, n) in own for kind in kinds)) + 1
        levels = []
        for number in range(count):
            for kind in kinds:
                if (kind, number) not in own:
                    what = f"lacks the tensor '{path}.{kind}_{number}'; copy the whole checkpoint"
                    raise ModelError(what, where=self._where, reason="weights")
            u, vt = own["u", number], own["vt", number]
            rank = u.shape[-1] if u.shape else 0
            if not 0 < rank <= MAX_RANK:
                raise _refused(u, f"has shape {list(u.shape)}: a rank from 1 to {MAX_RANK} was expected")
            _expect(u, "F16", (rows, rank))
            _expect(vt, "F16", (rank, columns))
            if signed:
                _expect(own["qweight", number], "U8", (-(-rows * columns // 8),))
            levels.append(Level(own["qweight", number] if signed else None, u, vt))
        for (kind, _), entry in own.items():  # the published code makes them, leaves them zero, and does not use them
            if kind == "bias" and any(entry.read()):
                raise _refused(entry, "is not zero: a bias of a level has no meaning in the published method")
        return Linear(path, rows, columns, tuple(levels))


def _expect(entry: Entry, dtype: str, shape: tuple[int, ...]) -> None:
    if entry.dtype != dtype or entry.shape != shape:
        raise _refused(entry, f"is {entry.dtype} {list(entry.shape)}, expected {dtype} {list(shape)}")


def _refused(entry: Entry, what: str) -> ModelError:
    return ModelError(f"{entry.name} {what}", where=str(entry.path), reason="weights")
