"""From a published BitStack checkpoint to a ``.bstk``: the same signs and factors, to the last bit, in one file."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bsformat import Form, Tensor, Writer
from bsformat.errors import ModelError
from bsformat.order import order_by_worth

from .outline import Outline, open_outline
from .packing import raw_dtype
from .progress import Reporter, Silent
from .published import Linear, Published
from .published_order import FILE, read_order
from .safetensors_file import Entry
from .shell import TORCH_DTYPES
from .targets import is_plain_linear

#: ``published``: that of ``compression_config.json``; the others as `bsformat.repack` has them.
ORDERS: Final = ("published", "worth", "average")
_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_ONE: Final = np.float16(1).tobytes()


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert_bitstack` made.

    Attributes:
        path, root: the file, and its root, 64 hexadecimal digits.
        size, total_bytes: its bytes, and the resident bytes of all of its blocks. raw_bytes: of those, what every
            prefix has.
        n_blocks, linears: blocks of decomposed layers, and how many layers those are.
        levels, ranks: the smallest and the largest number of levels of a layer, and rank of a level.
        raw_tensors: how many tensors were taken as they are.
        order: one of `ORDERS`.
    """

    path: str
    root: str
    size: int
    total_bytes: int
    raw_bytes: int
    n_blocks: int
    linears: int
    levels: tuple[int, int]
    ranks: tuple[int, int]
    raw_tensors: int
    order: str

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def convert_bitstack(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    order: str = "published",
    report: Reporter | None = None,
) -> Converted:
    """Write a published checkpoint as a ``.bstk``.

    Signs and factors are copied as they are, so that the value of every matrix at every number of levels is that of the
    checkpoint, computed exactly. Scales are ones, for the checkpoint's are in its weights. Memory holds one level of
    a layer, or one tensor that was not decomposed; blocks are kept in a nameless file beside the output until the
    order is known.

    The worth of a level is by how much it lowers the squared error of its layer, as a share of the sum over the layer's
    levels, per resident byte: activations are scaled into the weights, so that is a share of the squared error of the
    layer's output, as far as its inputs are not correlated.

    Args:
        folder: its directory: ``config.json``, tokenizer, safetensors, and for its order ``compression_config.json``.
        output: the file; one that is there is replaced.
        order: ``published`` as the checkpoint says; ``worth`` by worth per byte; ``average`` level by level, by worth
            within a level.

    Raises:
        ModelError: the checkpoint is damaged or not complete, its order names what it does not have, or transformers
            does not know its architecture. WriteError: the output cannot be written.
    """
    report, place = report or Silent(), Path(folder)
    if order not in ORDERS:
        raise ModelError(f"{order!r} is no order; there are {', '.join(ORDERS)}", reason="order")
    if not place.is_dir():
        raise ModelError("is no directory; name that of a BitStack checkpoint", where=os.fspath(folder))
    outline = open_outline(place)
    files = [path for path in outline.sources if path.suffix == ".safetensors"]
    if not files:
        raise ModelError("has no *.safetensors, as published checkpoints have", where=str(place), reason="weights")
    plain = {path: m for path, m in outline.model.named_modules() if is_plain_linear(m)}
    shapes = {path: (m.out_features, m.in_features) for path, m in plain.items()}
    found = Published(files, shapes, str(place))
    raw = _raw_tensors(outline, found, str(place))
    sequence = None
    if order == "published":
        sequence = read_order(place / FILE, {path: len(linear.levels) for path, linear in found.linears.items()})
    with report.stage("read", len(files), "file") as advance:
        digest = outline.digest()
        advance(len(files))
    conversion = _Conversion(outline, found, raw, report)
    extra = _provenance(outline, found, order, digest)
    return conversion.write(os.fspath(output), order, sequence, extra)


class _Conversion:
    """The tensors of the file, and what fills them."""

    def __init__(
        self, outline: Outline, found: Published, raw: dict[str, Entry | torch.Tensor], report: Reporter
    ) -> None:
        self._outline, self._found, self._raw, self._report = outline, found, raw, report
        linears = {f"{path}.weight": linear for path, linear in found.linears.items()}
        #: Vectors of ones, shared by all matrices of a side.
        sides = sorted({side for linear in linears.values() for side in (linear.rows, linear.columns)})
        self._ones = {f"ones#{side}": side for side in sides}
        number = {side: i for i, side in enumerate(sides)}
        self._linears: dict[str, Linear] = {}
        self._tensors = [Tensor(name, (side,), "F16") for name, side in self._ones.items()]
        dense = _NAMES[outline.dtype]
        for name in outline.names:
            if name in linears:
                linear = self._linears[name] = linears[name]
                shape = (linear.rows, linear.columns)
                scales = number[linear.rows], number[linear.columns]
                self._tensors.append(Tensor(name, shape, dense, linear.rows, *scales))
            elif name in raw:
                value = raw[name]
                dtype = value.dtype if isinstance(value, Entry) else raw_dtype(value, name)
                self._tensors.append(Tensor(name, tuple(value.shape), dtype))

    def write(self, path: str, order: str, sequence: Sequence[str] | None, extra: dict[str, Any]) -> Converted:
        with Writer(path, self._tensors) as writer:
            chain = {t.name: t.first_chain for t in writer.tensors}
            sizes: dict[int, list[int]] = {}
            losses: dict[int, list[float]] = {}
            total = raw_bytes = 0
            with self._report.stage("convert", len(writer.tensors), "tensor") as advance:
                for tensor in writer.tensors:
                    if tensor.packed:
                        blocks = sizes[tensor.first_chain] = []
                        losses[tensor.first_chain] = self._put(writer, tensor, blocks.append)
                        total += sum(blocks)
                    else:
                        data = self._bytes(tensor)
                        raw_bytes += len(data)
                        writer.put(tensor.first_chain, Form("raw"), data)
                        del data
                    advance(1)
            for file, content in self._outline.files.items():
                writer.attach(file, content)
            if sequence is not None:
                worth = _worth(losses, sizes)
                chains = [chain[f"{linear}.weight"] for linear in sequence]
                made = [(number, next(worth[number])) for number in chains]
            elif order == "average":
                made = _by_level(losses, sizes)
            else:
                made = order_by_worth(losses, sizes)
            root = writer.finish(made, aliases=self._outline.aliases, extra=extra)
        levels = [len(blocks) for blocks in sizes.values()]
        ranks = _ranks(self._found)
        return Converted(
            path,
            root,
            os.path.getsize(path),
            total + raw_bytes,
            raw_bytes,
            sum(levels),
            len(levels),
            (min(levels), max(levels)),
            (min(ranks), max(ranks)),
            len(self._raw),
            order,
        )

    def _put(self, writer: Writer, tensor: Tensor, size: Callable[[int], object]) -> list[float]:
        """Add the levels of a layer; gives the share of its squared error that is left with none, one, … of them."""
        linear = self._linears[tensor.name]
        energies = []
        for number in range(len(linear.levels)):
            form, data, energy = linear.block(number)
            writer.put(tensor.first_chain, form, data)
            size(len(data))
            energies.append(energy)
        left = [0.0, *accumulate(reversed(energies))][::-1]
        return [value / (left[0] or 1.0) for value in left]

    def _bytes(self, tensor: Tensor) -> bytes:
        if tensor.name in self._ones:
            return _ONE * self._ones[tensor.name]
        value = self._raw[tensor.name]
        if isinstance(value, Entry):
            return value.read()
        stored = value.detach().cpu().to(TORCH_DTYPES[tensor.dtype]).contiguous()
        return stored.reshape(-1).view(torch.uint8).numpy().tobytes()


def _worth(losses: dict[int, list[float]], sizes: dict[int, list[int]]) -> dict[int, Any]:
    """For each chain, what its levels are worth per byte, one after the other."""
    return {
        number: iter([max(left[i] - left[i + 1], 0.0) / size for i, size in enumerate(sizes[number])])
        for number, left in losses.items()
    }


def _by_level(losses: dict[int, list[float]], sizes: dict[int, list[int]]) -> list[tuple[int, float]]:
    worth = _worth(losses, sizes)
    levels = [(level, -next(worth[number]), number) for number in losses for level in range(len(sizes[number]))]
    return [(number, -value) for _, value, number in sorted(levels)]


def _raw_tensors(outline: Outline, found: Published, where: str) -> dict[str, Entry | torch.Tensor]:
    """The tensors that were not decomposed, by their names in the model, and those that are computed and in no file."""
    state = outline.model.state_dict()
    packed = {f"{path}.weight" for path in found.linears}
    tied: dict[str, list[str]] = {}
    for alias, name in outline.aliases.items():
        tied.setdefault(name, []).append(alias)
    out: dict[str, Entry | torch.Tensor] = {}
    used: set[str] = set()
    for name in outline.names:
        names = [name, *tied.get(name, ())]
        used.update(names)
        entry = next((found.others[n] for n in names if n in found.others), None)
        if name in packed:
            if entry is not None:
                raise ModelError(f"has {entry.name} decomposed and as it is", where=where, reason="weights")
        elif entry is None:
            if state[name].is_meta:
                what = f"lacks the tensor {name!r}, which its configuration asks for; copy the whole checkpoint"
                raise ModelError(what, where=where, reason="weights")
            out[name] = state[name]
        elif entry.shape != tuple(state[name].shape):
            what = f"{entry.name} has shape {list(entry.shape)}, its configuration says {list(state[name].shape)}"
            raise ModelError(what, where=str(entry.path), reason="weights")
        else:
            out[name] = entry
    if strange := [name for name in found.others if name not in used]:
        what = f"{strange[0]} has no place in a {type(outline.model).__name__} ({len(strange)} such tensors)"
        raise ModelError(what, where=str(found.others[strange[0]].path), reason="weights")
    return out


def _ranks(found: Published) -> list[int]:
    return [level.u.shape[1] for linear in found.linears.values() for level in linear.levels]


def _provenance(outline: Outline, found: Published, order: str, digest: str) -> dict[str, Any]:
    model, ranks = outline.model, _ranks(found)
    return {
        "model": {
            "name": outline.place.name,
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "converted": {
            "format": "bitstack",
            "method": "arXiv 2410.23918",
            "files": [path.name for path in outline.sources],
            "blake3": digest,
            "order": order,
            "ranks": [min(ranks), max(ranks)],
        },
    }
