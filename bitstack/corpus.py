"""The texts of one packing: what the statistics are taken from, and what the quality curve is measured on."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import torch

from bsformat.errors import ModelError

from .packing import Recipe
from .progress import Reporter
from .text import Windows, file_windows, self_windows
from .work import WorkFolder

#: Tokens that the model writes at once: they take its cache of keys and values.
_AT_ONCE: Final = 1 << 15


def texts(
    model: Any,
    tokenizer: Any,
    calib: str | os.PathLike[str],
    recipe: Recipe,
    report: Reporter,
    work: WorkFolder,
    whole: Callable[[], AbstractContextManager[object]],
) -> tuple[Windows, Windows]:
    """Windows to calibrate on, and others, held out.

    Args:
        calib: a text file, or ``self``: text that the model writes.
        work: keeps what the model wrote.
        whole: a context in which all of the model is in memory.

    Raises:
        ModelError: the text cannot be read, or is too short.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or recipe.window
    window = min(recipe.window, int(limit))
    count, heldout = max(1, recipe.calib_tokens // window), max(1, recipe.heldout_tokens // window)
    if os.fspath(calib) == "self":
        ids = _written(model, tokenizer, window, count + heldout, recipe.seed, report, work, whole)
        return Windows("self", ids[:count]), Windows("self", ids[count:])
    everything = file_windows(tokenizer, calib, window)
    name, total = everything.name, len(everything)
    if total < 2:
        raise ModelError(
            f"has {everything.ids.numel()} tokens, fewer than two windows of {window}, one of them held out",
            where=os.fspath(calib),
            reason="text",
        )
    heldout = min(heldout, max(1, total // 5))
    rest = total - heldout
    chosen = torch.arange(min(count, rest)) * rest // min(count, rest)
    return Windows(name, everything.ids[chosen]), Windows(name, everything.ids[rest:])


def _written(
    model: Any,
    tokenizer: Any,
    window: int,
    total: int,
    seed: int,
    report: Reporter,
    work: WorkFolder,
    whole: Callable[[], AbstractContextManager[object]],
) -> torch.Tensor:
    """Text that the model writes itself, int64 [total, window], part by part."""
    parts = [(first, min(_part(window), total - first)) for first in range(0, total, _part(window))]
    missing = [part for part in parts if not work.has(_name(part[0]))]
    done = total - sum(size for _, size in missing)
    if missing:
        with report.stage("write text", total * window, "token", done * window) as advance, whole():
            for first, size in missing:
                made = self_windows(model, tokenizer, window, size, seed=seed + first, progress=advance)
                work.save(_name(first), {"ids": made.ids})
    return torch.cat([work.load(_name(first))["ids"] for first, _ in parts])


def _part(window: int) -> int:
    return max(1, _AT_ONCE // window)


def _name(first: int) -> str:
    return f"text-{first:06d}.safetensors"
