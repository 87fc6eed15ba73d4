"""The quality curve of a file: what held-out text says of each of some prefixes."""

from typing import Final

import torch

from bsformat import Container, Curve

from .api import load
from .evaluation import perplexity
from .progress import Reporter
from .task import METRICS
from .text import Windows
from .work import WorkFolder

_WINDOWS: Final = "heldout.safetensors"
_POINTS: Final = "curve.json"
_ABOUT: Final = "heldout.json"


def save_windows(work: WorkFolder, windows: Windows) -> None:
    """Keep the held-out text until the file can be measured."""
    parts = {"ids": windows.ids, "labels": windows.labels, "decoder_ids": windows.decoder_ids}
    if not work.has(_WINDOWS):
        work.save(_WINDOWS, {name: value.contiguous() for name, value in parts.items() if value is not None})
    if not work.has(_ABOUT):
        work.save_json(_ABOUT, {"name": windows.name, "task": windows.task})


def measure_curve(
    container: Container,
    work: WorkFolder,
    dense: float,
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Reporter,
) -> list[Curve]:
    """Measure the held-out text at budgets from the smallest to all, each loaded as a user loads it.

    Args:
        work: holds the text (`save_windows`), and keeps each point that is measured.
        dense: the measure of the dense model. steps: how many points, at most.
        dtype: what the model computes in.

    Returns:
        The curve, or none where the model says nothing about text.
    """
    about, parts = work.load_json(_ABOUT), work.load(_WINDOWS)
    heldout = Windows(about["name"], parts["ids"], about["task"], parts.get("labels"), parts.get("decoder_ids"))
    if heldout.task not in METRICS:
        return []
    known = dict(work.load_json(_POINTS)) if work.has(_POINTS) else {}
    low, high = container.minimum_bytes, container.total_bytes
    # Closer together where the curve is steep, at the small end.
    budgets = [low + int((high - low) * (0.2 + 0.8 * (i / max(steps - 1, 1)) ** 1.5)) for i in range(steps)]
    planner = container.planner
    counts = sorted({planner.plan(max(b, low)).n_blocks for b in budgets})
    missing = [count for count in counts if count not in known]
    if missing:
        tokens = heldout.ids.numel()
        with report.stage("measure curve", len(counts) * tokens, "token", len(known) * tokens) as advance:
            # Raw tensors take up to twice their bytes in float32; the exact budget of a prefix is known once they are
            # in.
            model = load(container, planner.prefix(missing[0]).resident_bytes + container.minimum_bytes, device, dtype)
            for count in missing:
                model.bitstack.resize(planner.prefix(count).resident_bytes + model.bitstack.widening)
                known[count] = perplexity(model, heldout, progress=advance)
                work.save_json(_POINTS, sorted(known.items()))
    finite = tuple((n, v) for n, v in sorted(known.items()) if v < float("inf"))
    return [Curve(METRICS[heldout.task], heldout.name, heldout.ids.numel(), heldout.ids.shape[1], dense, finite)]
