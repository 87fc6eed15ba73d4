"""Packing from end to end: open, calibrate, decompose, order, write, and measure the quality curve."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import bsformat
from bsformat import Container, Curve
from bsformat.errors import ModelError

from .api import load
from .calibrate import calibrate
from .checkpoint import Checkpoint, open_checkpoint
from .decompose import check_finite
from .evaluation import perplexity
from .packing import Recipe, write_blocks
from .progress import Reporter, Silent
from .targets import survey
from .task import METRICS, prepare
from .text import Windows, file_windows, self_windows


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` made.

    Attributes:
        path, root, size: of the file: where it is, its root digest, its bytes.
        raw: names of the parameters kept raw.
        why_raw: why, of those that are large enough to be packed.
    """

    path: str
    root: str
    size: int
    raw: tuple[str, ...]
    why_raw: Mapping[str, str] = field(default_factory=dict)


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    calib: str | os.PathLike[str] = "self",
    recipe: Recipe | None = None,
    report: Reporter | None = None,
) -> Packed:
    """Pack a model into one file.

    Args:
        source: a Hugging Face directory or hub id, or a ``.gguf`` file.
        output: the file to write; it appears when everything is done, and only then.
        calib: a text file, or ``self``: text that the model writes itself.
        recipe: how; None is the default recipe.
        report: shows the progress.

    Raises:
        ModelError: the model cannot be read or packed. WriteError: the file cannot be written.
    """
    recipe, report = recipe or Recipe(), report or Silent()
    path = os.fspath(output)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise bsformat.errors.WriteError("the folder does not exist; create it first", where=folder)
    checkpoint = open_checkpoint(source)
    found = survey(checkpoint.model)
    targets = found.targets
    if not targets:
        raise ModelError(
            "has nothing to pack: no linear layer, embedding, Conv1D or stack of experts that is large enough",
            where=os.fspath(source),
            reason="nothing-to-pack",
        )
    for name, value in checkpoint.model.state_dict().items():
        check_finite(value, name)
    windows, heldout = _texts(checkpoint, calib, recipe, report)
    with report.stage("calibrate", windows.ids.numel(), "token") as advance:
        statistics = calibrate(checkpoint.model, targets, windows, progress=advance)
    dense = 0.0
    if heldout.task in METRICS:
        with report.stage("measure dense", heldout.ids.numel(), "token") as advance:
            dense = perplexity(checkpoint.model, heldout, progress=advance)
    extra = _provenance(checkpoint, windows, recipe, found.raw)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{os.path.basename(path)}.") as scratch:
        draft = os.path.join(scratch, "draft.bstk")
        write_blocks(draft, checkpoint, targets, statistics, recipe, extra, report)
        packed = {t.name for t in targets}
        raw = tuple(n for n, _ in checkpoint.model.named_parameters() if n not in packed)
        del checkpoint, statistics
        with bsformat.open(draft) as container:
            curves = []
            if heldout.task in METRICS:
                curves.append(_measure_curve(container, heldout, dense, recipe, report))
            root = bsformat.rewrite(container, path, curves=curves)
    return Packed(path, root, os.path.getsize(path), raw, found.raw)


def _texts(
    checkpoint: Checkpoint, calib: str | os.PathLike[str], recipe: Recipe, report: Reporter
) -> tuple[Windows, Windows]:
    """Windows to calibrate on, and others, held out, for the quality curve; both as the model's task wants them."""
    chosen, heldout = _windows(checkpoint, calib, recipe, report)

    def prepared(windows: Windows, seed: int) -> Windows:
        return prepare(windows, checkpoint.task, checkpoint.model, checkpoint.tokenizer, seed)

    return prepared(chosen, recipe.seed), prepared(heldout, recipe.seed + 1)


def _windows(
    checkpoint: Checkpoint, calib: str | os.PathLike[str], recipe: Recipe, report: Reporter
) -> tuple[Windows, Windows]:
    limit = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None) or recipe.window
    window = min(recipe.window, int(limit))
    count, heldout = max(1, recipe.calib_tokens // window), max(1, recipe.heldout_tokens // window)
    if os.fspath(calib) == "self" and checkpoint.task != "causal":
        raise ModelError(
            f"is a {type(checkpoint.model).__name__}, which writes no text of its own to calibrate on: "
            "name a text file with --calib FILE",
            where=checkpoint.name,
            reason="text",
        )
    if os.fspath(calib) == "self":
        with report.stage("write text", (count + heldout) * window, "token") as advance:
            windows = self_windows(
                checkpoint.model, checkpoint.tokenizer, window, count + heldout, seed=recipe.seed, progress=advance
            )
        return Windows("self", windows.ids[:count]), Windows("self", windows.ids[count:])
    everything = file_windows(checkpoint.tokenizer, calib, window)
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


def _provenance(checkpoint: Checkpoint, windows: Windows, recipe: Recipe, raw: dict[str, str]) -> dict[str, Any]:
    model = checkpoint.model
    return {
        "model": {
            "name": checkpoint.name,
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "calibration": {"text": windows.name, "tokens": windows.ids.numel(), "window": windows.ids.shape[1]},
        "recipe": recipe.to_json(),
    } | ({"raw": raw} if raw else {})


def _measure_curve(container: Container, heldout: Windows, dense: float, recipe: Recipe, report: Reporter) -> Curve:
    """Perplexity of the held-out text at budgets from the smallest to all blocks, each loaded as a user loads it."""
    low, high = container.minimum_bytes, container.total_bytes
    steps = recipe.curve_points
    # Closer together where the curve is steep, at the small end.
    budgets = [low + int((high - low) * (0.2 + 0.8 * (i / max(steps - 1, 1)) ** 1.5)) for i in range(steps)]
    counts = sorted({container.planner.plan(max(b, low)).n_blocks for b in budgets})
    points = []
    with report.stage("measure curve", len(counts) * heldout.ids.numel(), "token") as advance:
        planner = container.planner
        # Raw tensors take up to twice their bytes in float32; the exact budget of a prefix is known once they are in.
        model = load(
            container, planner.prefix(counts[0]).resident_bytes + container.minimum_bytes, "cpu", torch.float32
        )
        for count in counts:
            model.bitstack.resize(planner.prefix(count).resident_bytes + model.bitstack.widening)
            points.append((model.bitstack.plan.n_blocks, perplexity(model, heldout, progress=advance)))
    finite = tuple((n, v) for n, v in points if v < float("inf"))
    return Curve(METRICS[heldout.task], heldout.name, heldout.ids.numel(), heldout.ids.shape[1], dense, finite)
