"""From a dense model to the blocks of one file."""

import os
from collections.abc import Iterator
from typing import Any

import torch

from bsformat import Form, Tensor, Writer
from bsformat.errors import ModelError

from . import decompose, reference
from .calibrate import Statistics
from .checkpoint import Checkpoint
from .decompose import Scales
from .measure import LinearMeasure, Measure, TokenMeasure
from .order import order_by_worth
from .progress import Reporter
from .recipe import Options, Recipe
from .shell import TORCH_DTYPES
from .targets import Target

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def write_blocks(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    targets: list[Target],
    statistics: Statistics,
    recipe: Recipe,
    extra: dict[str, Any],
    report: Reporter,
) -> str:
    """Decompose every target and write the file, without a quality curve.

    Returns:
        The root digest.

    Raises:
        ModelError: a weight is not finite. WriteError: the file cannot be written.
    """
    model = checkpoint.model
    state = dict(model.state_dict())
    names, aliases = _canonical(model, state)
    packed = {t.name: t for t in targets}
    measures = {name: _measure(statistics, t) for name, t in packed.items()}
    options = {t.name: chain_options(recipe, t) for t in targets}
    scales = {name: reference.chosen_scales(m.scales(), options[name].scales) for name, m in measures.items()}
    tensors = list(_tensors(names, state, packed, checkpoint.dtype))
    with Writer(path, tensors, compress=recipe.save.codec == "zstd") as writer:
        chains = {t.name: t for t in writer.tensors}
        for name in names:
            if name not in packed:
                decompose.check_finite(state[name], name)
                writer.put(chains[name].first_chain, Form("raw"), _raw_bytes(state[name], chains[name].dtype))
        for name, pair in scales.items():
            for suffix, values in (("row_scale", pair.row), ("col_scale", pair.col)):
                writer.put(chains[f"{name}#{suffix}"].first_chain, Form("raw"), _raw_bytes(values, "F16"))
        losses: dict[int, list[float]] = {}
        sizes: dict[int, list[int]] = {}
        with report.stage("decompose", sum(t.rows * t.columns for t in targets), "weight") as advance:
            for number, target in enumerate(targets):
                weight = state[target.name].float()
                decompose.check_finite(weight, target.name)
                matrix = target.matrix(weight)
                for chain, loss, size in _write_chains(
                    writer,
                    chains[target.name],
                    matrix,
                    scales[target.name],
                    measures[target.name],
                    options[target.name],
                    recipe.seed + 1000 * number,
                ):
                    losses[chain], sizes[chain] = loss, size
                advance(target.rows * target.columns)
        for name, data in checkpoint.files.items():
            writer.attach(name, data)
        return writer.finish(order_by_worth(losses, sizes), aliases=aliases, extra=extra)


def chain_options(recipe: Recipe, target: Target) -> Options:
    """The part of the recipe that a parameter falls under."""
    return recipe.decompose.token if target.by_token else recipe.decompose.linear


def _write_chains(
    writer: Writer,
    tensor: Tensor,
    matrix: torch.Tensor,
    scales: Scales,
    measure: Measure,
    options: Options,
    seed: int,
) -> Iterator[tuple[int, list[float], list[int]]]:
    """Write all chains of a tensor; for each its number, the loss after each level, and the bytes of each."""
    inverse = measure.inverse() if options.walk else None
    for group in range(tensor.n_chains):
        start = group * tensor.group_rows
        rest = matrix[start : start + tensor.group_rows].clone()
        loss, size = [measure.loss(rest, start)], []
        own = Scales(scales.row[start : start + len(rest)], scales.col)
        if options.method == "paper":
            levels = reference.chain(rest.clone(), own, options, seed=seed + 100_000 * group)
        else:
            levels = decompose.chain(rest.clone(), own, options, seed=seed + 100_000 * group, inverse=inverse)
        for level in levels:
            writer.put(tensor.first_chain + group, level.form, level.data)
            rest -= level.values
            loss.append(measure.loss(rest, start))
            size.append(len(level.data))
        yield tensor.first_chain + group, loss, size


def _measure(statistics: Statistics, target: Target) -> Measure:
    if target.by_token:
        return TokenMeasure(statistics.token[target.name])
    return LinearMeasure(statistics.linear[target.name])


def _canonical(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> tuple[list[str], dict[str, str]]:
    """The names of all distinct tensors of a model, and the other names of those that are tied."""
    first: dict[int, str] = {}
    names, aliases = [], {}
    objects = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name in state:
        key = id(objects.get(name, state[name]))
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            names.append(name)
    return names, aliases


def _tensors(
    names: list[str], state: dict[str, torch.Tensor], packed: dict[str, Target], dtype: torch.dtype
) -> Iterator[Tensor]:
    """The table of tensors: scales right before the tensor that they scale."""
    number = 0
    for name in names:
        target = packed.get(name)
        if target is None:
            value = state[name]
            yield Tensor(name, tuple(value.shape), raw_dtype(value, name))
            number += 1
            continue
        yield Tensor(f"{name}#row_scale", (target.rows,), "F16")
        yield Tensor(f"{name}#col_scale", (target.columns,), "F16")
        dense = _NAMES.get(dtype, "F32")
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
