"""The texts of one packing: what the statistics are taken from, and what the quality curve is measured on."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import torch

from bsformat.errors import ModelError

from .progress import Reporter
from .reach import readable_tokens
from .recipe import Recipe
from .task import Task, prepare
from .text import Windows, file_windows, self_windows
from .work import WorkFolder

#: Tokens that the model writes at once: they take its cache of keys and values.
_AT_ONCE: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class Texts:
    """The windows of one packing; no window is in two of them.

    Attributes:
        calib: what the statistics are taken from.
        heldout: what the quality curve is measured on.
        tune: token ids [steps, tokens a window], what the scales are trained on.
    """

    calib: Windows
    heldout: Windows
    tune: torch.Tensor


def texts(
    model: Any,
    tokenizer: Any,
    task: Task,
    calib: str | os.PathLike[str],
    recipe: Recipe,
    report: Reporter,
    work: WorkFolder,
    whole: Callable[[], AbstractContextManager[object]],
) -> Texts:
    """Cut the windows of one packing out of a text.

    Args:
        calib: a text file, or ``self``: text that the model writes.
        work: keeps what the model wrote.
        whole: a context in which all of the model is in memory.

    Raises:
        ModelError: the text cannot be read, or is too short; or the model is to write it and does not write.
    """
    window = min(recipe.calib.window, readable_tokens(model.config) or recipe.calib.window)
    count, heldout = max(1, recipe.calib.tokens // window), max(1, recipe.eval.heldout_tokens // window)
    steps = recipe.tune.steps if task == "causal" else 0
    if os.fspath(calib) == "self":
        if task != "causal":
            raise ModelError(
                f"is a {type(model).__name__}, which writes no text of its own to calibrate on: name a text file with "
                "--calib FILE",
                reason="text",
            )
        ids = _written(model, tokenizer, window, count + steps + heldout, recipe.seed, report, work, whole)
        parts = [ids[:count], ids[count : count + steps], ids[count + steps :]]
        name = "self"
    else:
        everything = file_windows(tokenizer, calib, window)
        name, parts = everything.name, _cut(everything.ids, count, steps, heldout, os.fspath(calib))

    def prepared(ids: torch.Tensor, seed: int) -> Windows:
        return prepare(Windows(name, ids), task, model, tokenizer, seed)

    return Texts(prepared(parts[0], recipe.seed), prepared(parts[2], recipe.seed + 1), parts[1])


def _cut(ids: torch.Tensor, count: int, steps: int, heldout: int, name: str) -> list[torch.Tensor]:
    """Windows for the statistics and for tuning, spread over the text, and those held out from its end."""
    total = len(ids)
    if total < 2:
        raise ModelError(
            f"has {ids.numel()} tokens, fewer than two windows of {ids.shape[1]}, one of them held out",
            where=name,
            reason="text",
        )
    rest = total - min(heldout, max(1, total // 5))
    # Tuning wants windows that the statistics have not seen; of a short text it gets a third.
    steps = steps if rest >= count + steps else min(steps, rest // 3)
    count = min(count, rest - steps)
    chosen = torch.arange(count) * rest // count
    free = torch.ones(rest, dtype=torch.bool)
    free[chosen] = False
    others = free.nonzero().flatten()
    tune = others[torch.arange(steps) * len(others) // max(steps, 1)]
    return [ids[chosen], ids[tune], ids[rest:]]


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
