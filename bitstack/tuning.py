"""The step of packing that tunes scales: what it takes, when it is left out, and what is kept of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import torch

import bsformat
from bsformat import Container, format_size

from .api import free_bytes, load
from .layerwise import has_fast_bfloat16
from .progress import Reporter
from .recipe import Recipe
from .tune import Schedule, tune
from .work import WorkFolder

_TUNED: Final = "tuned.safetensors"
_SKIPPED: Final = "untuned.json"
#: Of the free memory, what the models may take; the rest is for activations and logits.
_SHARE: Final = 0.7
#: Random numbers of this step, apart from those of others.
_SEED: Final = 7_000_003


def load_tuned(work: WorkFolder) -> dict[str, torch.Tensor]:
    """The tuned values by name; none if nothing was tuned."""
    return work.load(_TUNED) if work.has(_TUNED) else {}


def tune_scales(
    work: WorkFolder,
    draft: str,
    dense: Any,
    whole: Callable[[], AbstractContextManager[None]],
    windows: torch.Tensor,
    recipe: Recipe,
    device: torch.device,
    report: Reporter,
) -> str:
    """Tune the scales of a file against the dense model, and keep the values in the work folder.

    Args:
        draft: the file, by its name in the work folder.
        dense: the dense model; ``whole`` is a context in which its weights are in memory.
        windows: int64 [steps, T].

    Returns:
        Why it was left out; "" if it was not.
    """
    if work.has(_TUNED):
        return ""
    if work.has(_SKIPPED):
        return str(work.load_json(_SKIPPED))
    with bsformat.open(work.file(draft)) as container:
        fast = device.type == "cuda" or has_fast_bfloat16()
        dtype = torch.bfloat16 if fast else torch.float32
        elements = sum(p.numel() for p in dense.parameters())
        needed = elements * (dtype.itemsize + (2 if device.type == "cuda" else 4)) + container.total_bytes
        free = free_bytes(device)
        if free is not None and needed > free * _SHARE:
            why = f"it takes {format_size(needed)}, of {format_size(free)} that are free on {device}"
            # Kept, so that a run that goes on with more memory makes the same bytes.
            work.save_json(_SKIPPED, why)
            return why
        model = load(container, "100%", device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        with report.stage("tune scales", len(windows), "step") as advance, whole():

            def teacher(ids: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = dense(input_ids=ids, use_cache=False).logits
                return logits

            # The same on both sides, or what rounding does would be learned too.
            with torch.autocast(device.type, dtype, enabled=fast):
                found = tune(
                    model,
                    teacher,
                    windows,
                    _budgets(container, recipe.decompose.bits),
                    Schedule(recipe.tune.rate, recipe.seed + _SEED),
                    dtype=dtype,
                    progress=advance,
                )
    work.save(_TUNED, {name: value.contiguous() for name, value in found.items()})
    return ""


def _budgets(container: Container, bits: tuple[float, ...]) -> list[dict[str, list[int]]]:
    """For each number of bits a weight, the levels of every chain in the prefix that has so many on average."""
    packed = [t for t in container.model_tensors.values() if t.packed]
    elements = sum(t.rows * t.columns for t in packed)
    fixed = container.minimum_bytes
    chain, out = container.index.chain, []
    for value in bits:
        plan = container.planner.plan(max(fixed, int(elements * value / 8) + fixed))
        counts = np.bincount(chain[container.index.required : plan.n_blocks], minlength=int(chain.max()) + 1)
        out.append({t.name: counts[t.first_chain : t.first_chain + t.n_chains].tolist() for t in packed})
    return out
