"""From a dense model to the blocks of one file."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from bsformat import Form, Tensor, Writer
from bsformat.errors import ModelError
from bsformat.order import order_by_worth

from .blocks import Blocks
from .outline import Outline, Tensors
from .progress import Advance
from .recipe import Options, Recipe
from .shell import TORCH_DTYPES
from .targets import Target

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def chain_options(recipe: Recipe, target: Target) -> Options:
    """The part of the recipe that a parameter falls under."""
    return recipe.decompose.token if target.by_token else recipe.decompose.linear


def write_file(
    path: str | os.PathLike[str],
    outline: Outline,
    values: Tensors,
    targets: Sequence[Target],
    blocks: Callable[[int], Blocks],
    extra: dict[str, Any],
    progress: Advance,
    *,
    tuned: Mapping[str, torch.Tensor] | None = None,
    compress: bool = True,
) -> str:
    """Write the file, without a quality curve. Never more than one tensor is in memory.

    Args:
        values: the tensors of the model.
        blocks: gives the blocks of a target by its place in ``targets``.
        progress: called with 1 for each tensor.
        tuned: other values for raw tensors and scales, by name.
        compress: see `Writer`.

    Returns:
        The root digest.

    Raises:
        WriteError: the file cannot be written.
    """
    numbers = {target.name: number for number, target in enumerate(targets)}
    tuned = tuned or {}
    tensors = list(_tensors(outline, values, targets, numbers, tuned))
    with Writer(path, tensors, compress=compress) as writer:
        chains = {t.name: t for t in writer.tensors}
        losses: dict[int, list[float]] = {}
        sizes: dict[int, list[int]] = {}
        for name in outline.names:
            if name not in numbers:
                writer.put(
                    chains[name].first_chain,
                    Form("raw"),
                    _raw_bytes(tuned.get(name, values.get(name)), chains[name].dtype),
                )
                progress(1)
        for target in targets:
            made, tensor = blocks(numbers[target.name]), chains[target.name]
            for suffix, scale in (("row_scale", made.scales.row), ("col_scale", made.scales.col)):
                name = f"{target.name}#{suffix}"
                writer.put(chains[name].first_chain, Form("raw"), _raw_bytes(tuned.get(name, scale), "F16"))
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


def _tensors(
    outline: Outline,
    values: Tensors,
    targets: Sequence[Target],
    numbers: dict[str, int],
    tuned: Mapping[str, torch.Tensor],
) -> Iterator[Tensor]:
    """The table of tensors: scales right before the tensor that they scale."""
    number = 0
    for name in outline.names:
        if name not in numbers:
            value = tuned[name] if name in tuned else values.get(name)
            yield Tensor(name, tuple(value.shape), raw_dtype(value, name))
            number += 1
            continue
        target = targets[numbers[name]]
        yield Tensor(f"{name}#row_scale", (target.rows,), "F16")
        yield Tensor(f"{name}#col_scale", (target.columns,), "F16")
        dense = _NAMES.get(outline.dtype, "F32")
        yield Tensor(name, target.shape, dense, target.group_rows, number, number + 1, target.transposed)
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
