"""From a dense model to the blocks of one file."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bsformat import Form, Tensor, Writer
from bsformat.errors import ModelError

from .blocks import Blocks
from .decompose import Options
from .order import order_by_worth
from .outline import Outline, Tensors
from .progress import Advance
from .shell import TORCH_DTYPES
from .targets import Target

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is packed.

    Attributes:
        linear, token: how the chains of linear layers, and of embeddings and output heads, are made.
        calib_tokens, window: how much text the statistics are taken from, and in windows of how many tokens.
        gradient_tokens: how much of that text the loss is differentiated on.
        heldout_tokens: how much other text the quality curve is measured on.
        curve_points: how many points of the curve are measured.
        seed: of everything random.
    """

    linear: Options = field(default_factory=lambda: Options(ranks=(8, 6, 4, 2, 2, 1, 1, 1)))
    token: Options = field(default_factory=lambda: Options(ranks=(8, 8, 6, 4, 2, 2, 1, 1), walk=False))
    calib_tokens: int = 8192
    window: int = 512
    gradient_tokens: int = 8192
    heldout_tokens: int = 4096
    curve_points: int = 6
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        out = asdict(self)
        for options in (out["linear"], out["token"]):
            options["ranks"] = list(options["ranks"])
        return out


def chain_options(recipe: Recipe, target: Target) -> Options:
    """The part of the recipe that a parameter falls under."""
    return recipe.token if target.by_token else recipe.linear


def write_file(
    path: str | os.PathLike[str],
    outline: Outline,
    values: Tensors,
    targets: Sequence[Target],
    blocks: Callable[[int], Blocks],
    extra: dict[str, Any],
    progress: Advance,
) -> str:
    """Write the file, without a quality curve. Never more than one tensor is in memory.

    Args:
        values: the tensors of the model.
        blocks: gives the blocks of a target by its place in ``targets``.
        progress: called with 1 for each tensor.

    Returns:
        The root digest.

    Raises:
        WriteError: the file cannot be written.
    """
    numbers = {target.name: number for number, target in enumerate(targets)}
    tensors = list(_tensors(outline, values, targets, numbers))
    with Writer(path, tensors) as writer:
        chains = {t.name: t for t in writer.tensors}
        losses: dict[int, list[float]] = {}
        sizes: dict[int, list[int]] = {}
        for name in outline.names:
            if name not in numbers:
                writer.put(chains[name].first_chain, Form("raw"), _raw_bytes(values.get(name), chains[name].dtype))
                progress(1)
        for target in targets:
            made, tensor = blocks(numbers[target.name]), chains[target.name]
            for suffix, scale in (("row_scale", made.scales.row), ("col_scale", made.scales.col)):
                writer.put(chains[f"{target.name}#{suffix}"].first_chain, Form("raw"), _raw_bytes(scale, "F16"))
            for group in range(tensor.n_chains):
                chain = tensor.first_chain + group
                losses[chain], sizes[chain] = made.losses(group), []
                for form, data in made.payloads(group):
                    writer.put(chain, form, data)
                    sizes[chain].append(len(data))
            progress(1)
        for file, content in outline.files.items():
            writer.attach(file, content)
        return writer.finish(order_by_worth(losses, sizes), aliases=outline.aliases, extra=extra)


def _tensors(outline: Outline, values: Tensors, targets: Sequence[Target], numbers: dict[str, int]) -> Iterator[Tensor]:
    """The table of tensors: scales right before the tensor that they scale."""
    number = 0
    for name in outline.names:
        if name not in numbers:
            value = values.get(name)
            yield Tensor(name, tuple(value.shape), raw_dtype(value, name))
            number += 1
            continue
        target = targets[numbers[name]]
        yield Tensor(f"{name}#row_scale", (target.rows,), "F16")
        yield Tensor(f"{name}#col_scale", (target.columns,), "F16")
        shape = (target.rows, target.columns)
        dense = _NAMES.get(outline.dtype, "F32")
        yield Tensor(name, shape, dense, target.group_rows, number, number + 1, target.transposed)
        number += 3


def raw_dtype(value: torch.Tensor, name: str) -> str:
    """The smallest type that holds a tensor exactly: a checkpoint in float32 often holds 16-bit values."""
    if value.dtype not in _NAMES:
        raise ModelError(f"{name} is of type {value.dtype}, which the format has no name for", reason="weight-dtype")
    if value.is_floating_point():
        for small in (torch.bfloat16, torch.float16, torch.float32):
            if value.dtype.itemsize > small.itemsize and torch.equal(value.to(small).to(value.dtype), value):
                return _NAMES[small]
    return _NAMES[value.dtype]


def _raw_bytes(value: torch.Tensor, dtype: str) -> bytes:
    stored = value.detach().cpu().to(TORCH_DTYPES[dtype]).contiguous()
    return stored.reshape(-1).view(torch.uint8).numpy().tobytes()
