"""Packing from end to end: open, calibrate, decompose, order, write, and measure the quality curve."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import blake3
import torch

import bsformat
from bsformat import Container, Curve
from bsformat.errors import ModelError, WriteError

from .api import load
from .corpus import texts
from .decompose import check_finite
from .evaluation import perplexity
from .layerwise import has_fast_bfloat16
from .outline import Outline, Tensors, open_outline
from .packing import Recipe, write_file
from .producer import Producer
from .progress import Reporter, Silent
from .residency import Residency
from .targets import Target, find_targets
from .text import Windows
from .work import WorkFolder

_CHECKED: Final = "checked.json"
_DRAFT: Final = "draft.bstk"
_ABOUT: Final = "about.json"
_CURVE: Final = "curve.json"


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` made.

    Attributes:
        path, root, size: where it is, its root digest, and its bytes.
        raw: names of the parameters kept as they are.
        whole: why the model had to be in memory whole while it was packed; "" if it had not.
    """

    path: str
    root: str
    size: int
    raw: tuple[str, ...]
    whole: str = ""


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    calib: str | os.PathLike[str] = "self",
    recipe: Recipe | None = None,
    report: Reporter | None = None,
    devices: Sequence[str | torch.device] = ("cpu",),
    work: str | os.PathLike[str] | None = None,
    restart: bool = False,
    keep_work: bool = False,
) -> Packed:
    """Pack a model into one file.

    What is done is kept in a work folder. If the run is ended, by whatever, the same call goes on where it was, and
    makes the same bytes.

    Args:
        source: a Hugging Face directory or hub id, or a ``.gguf`` file.
        output: the file to write; it appears when everything is done, and only then.
        calib: a text file, or ``self``: text that the model writes itself.
        recipe: how; None is the default recipe.
        report: shows the progress.
        devices: where to compute. The model runs on the first; matrices are decomposed on all of them.
        work: the work folder; None: ``output`` with ``.work`` behind it. It is removed when the file is there.
        restart: discard what an earlier run left in the work folder.
        keep_work: do not remove the work folder.

    Raises:
        ModelError: the model cannot be read or packed. WriteError: the file cannot be written, or the work folder
            belongs to another packing.
    """
    recipe, report = recipe or Recipe(), report or Silent()
    path = os.fspath(output)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise WriteError("the folder does not exist; create it first", where=folder)
    places = [torch.device(device) for device in devices]
    outline = open_outline(source)
    targets = find_targets(outline.model)
    if not targets:
        raise ModelError(
            "has nothing to pack: no linear layer, embedding or Conv1D that is large enough",
            where=os.fspath(source),
            reason="nothing-to-pack",
        )
    identity = _identity(outline, calib, recipe, places[0])
    with WorkFolder(work or f"{path}.work", identity, restart=restart, keep=keep_work) as kept:
        job = _Job(outline, targets, calib, recipe, report, places, kept)
        with _repeatable(places[0]):
            job.draft()
        root = job.finish(path)
        why = kept.load_json(_ABOUT)["whole"]
    packed = {t.name for t in targets}
    raw = tuple(n for n, _ in outline.model.named_parameters() if n not in packed)
    return Packed(path, root, os.path.getsize(path), raw, why)


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Within it, CUDA too computes the same bits every time, as far as it can."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _identity(outline: Outline, calib: str | os.PathLike[str], recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Everything that determines the bytes of the file."""
    import transformers

    small = blake3.blake3()
    for name, data in sorted(outline.files.items()):
        small.update(f"{name} {len(data)} ".encode() + data)
    text = os.fspath(calib)
    if text != "self":
        try:
            text = f"{os.path.basename(text)} {blake3.blake3(Path(text).read_bytes()).hexdigest()}"
        except OSError as error:
            raise ModelError(f"no text that can be read ({error.strerror})", where=text, reason="text") from None
    versions = {"bitstack": bsformat.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "model": [outline.place.name, outline.digest(), small.hexdigest()],
        "calibration text": text,
        "recipe": recipe.to_json(),
        "software": versions,
        "device": [device.type, has_fast_bfloat16()] if device.type == "cpu" else [device.type],
    }


@dataclass(slots=True)
class _Job:
    """One packing: what it works on."""

    outline: Outline
    targets: list[Target]
    calib: str | os.PathLike[str]
    recipe: Recipe
    report: Reporter
    devices: list[torch.device]
    work: WorkFolder

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return torch.float32 if self.devices[0].type == "cpu" else torch.bfloat16

    def draft(self) -> None:
        """Write the file, without a quality curve, into the work folder."""
        work = self.work
        if work.has(_DRAFT):
            return
        values = Tensors(self.outline, work)
        self._check(values)
        residency = Residency(self.outline, values, device=self.devices[0], dtype=self.dtype)
        windows, heldout = texts(
            self.outline.model,
            self.outline.tokenizer,
            self.calib,
            self.recipe,
            self.report,
            work,
            lambda: residency.holding(residency.names),
        )
        producer = Producer(
            self.outline,
            values,
            residency,
            self.targets,
            recipe=self.recipe,
            work=work,
            devices=self.devices,
            report=self.report,
        )
        dense, why = producer.produce(windows, heldout)
        if not work.has(_ABOUT):
            about = {"dense": dense, "text": heldout.name, "heldout": heldout.ids.tolist(), "whole": why}
            work.save_json(_ABOUT, about)
        extra = _provenance(self.outline, windows, self.recipe)
        count = len(self.outline.names)
        with self.report.stage("write", count, "tensor") as advance:
            write_file(work.file(_DRAFT), self.outline, values, self.targets, producer.blocks, extra, advance)
        producer.drop()

    def _check(self, values: Tensors) -> None:
        """Read every weight once: what cannot be packed is refused before the long work."""
        if self.work.has(_CHECKED):
            return
        total = sum(value.numel() for value in self.outline.model.state_dict().values())
        with self.report.stage("read weights", total, "weight") as advance:
            seen = 0
            for name, value in values.items():
                check_finite(value, name)
                advance(value.numel())
                seen += value.numel()
            advance(total - seen)  # tied ones are there twice
        self.work.save_json(_CHECKED, True)

    def finish(self, path: str) -> str:
        """Measure the quality curve, and write the file to its place."""
        with bsformat.open(self.work.file(_DRAFT)) as container:
            curve = self._curve(container)
            return bsformat.rewrite(container, path, curves=[curve])

    def _curve(self, container: Container) -> Curve:
        """Perplexity of the held-out text at budgets from the smallest to all, each loaded as a user loads it."""
        about = self.work.load_json(_ABOUT)
        heldout = Windows(about["text"], torch.tensor(about["heldout"]))
        known = dict(self.work.load_json(_CURVE)) if self.work.has(_CURVE) else {}
        low, high = container.minimum_bytes, container.total_bytes
        steps = self.recipe.curve_points
        # Closer together where the curve is steep, at the small end.
        budgets = [low + int((high - low) * (0.2 + 0.8 * (i / max(steps - 1, 1)) ** 1.5)) for i in range(steps)]
        planner = container.planner
        counts = sorted({planner.plan(max(b, low)).n_blocks for b in budgets})
        missing = [count for count in counts if count not in known]
        if missing:
            tokens = heldout.ids.numel()
            with self.report.stage("measure curve", len(counts) * tokens, "token", len(known) * tokens) as advance:
                # Raw tensors take up to twice their bytes in float32; the exact budget of a prefix is known once they
                # are in.
                budget = planner.prefix(missing[0]).resident_bytes + container.minimum_bytes
                model = load(container, budget, self.devices[0], self.dtype)
                for count in missing:
                    model.bitstack.resize(planner.prefix(count).resident_bytes + model.bitstack.widening)
                    known[count] = perplexity(model, heldout, progress=advance)
                    self.work.save_json(_CURVE, sorted(known.items()))
        finite = tuple((n, v) for n, v in sorted(known.items()) if v < float("inf"))
        return Curve("perplexity", heldout.name, heldout.ids.numel(), heldout.ids.shape[1], about["dense"], finite)


def _provenance(outline: Outline, windows: Windows, recipe: Recipe) -> dict[str, Any]:
    model = outline.model
    return {
        "model": {
            "name": outline.place.name,
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "calibration": {"text": windows.name, "tokens": windows.ids.numel(), "window": windows.ids.shape[1]},
        "recipe": recipe.to_json(),
    }
