"""Packing from end to end: open, calibrate, decompose, order, write, and measure the quality curve."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import blake3
import torch

import bsformat
from bsformat.cutting import volume_name
from bsformat.errors import ModelError, WriteError

from .corpus import texts
from .curve import measure_curve, save_windows
from .decompose import check_finite
from .layerwise import has_fast_bfloat16
from .outline import Outline, Tensors, open_outline
from .packing import chain_options, write_file
from .producer import Producer
from .progress import Reporter, Silent
from .recipe import Recipe
from .residency import Residency
from .sweep import order_of_paper
from .targets import Target, survey
from .text import Windows
from .tuning import load_tuned, tune_scales
from .work import WorkFolder

_CHECKED: Final = "checked.json"
_DRAFT: Final = "draft.bstk"
_ABOUT: Final = "about.json"
_UNTUNED: Final = "untuned.bstk"
_UNORDERED: Final = "unordered.bstk"
_SWEEP: Final = "sweep.json"


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` made.

    Attributes:
        path, root, size: where it is, its root digest, and its bytes, those of all volumes.
        raw: names of the parameters kept as they are.
        why_raw: why, of those that are large enough to be packed.
        whole: why the model had to be in memory whole while it was packed; "" if it had not.
        untuned: why the scales were not tuned although the recipe says so; "" if they were.
    """

    path: str
    root: str
    size: int
    raw: tuple[str, ...]
    why_raw: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""
    untuned: str = ""


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    calib: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    report: Reporter | None = None,
    devices: Sequence[str | torch.device] = ("cpu",),
    work: str | os.PathLike[str] | None = None,
    restart: bool = False,
    keep_work: bool = False,
    volume_size: int | str | None = None,
) -> Packed:
    """Pack a model into one file.

    What is done is kept in a work folder. If the run is ended, by whatever, the same call goes on where it was, and
    makes the same bytes.

    Args:
        source: a Hugging Face directory or hub id, or a ``.gguf`` file.
        output: the file to write; it appears when everything is done, and only then.
        calib: a text file, or ``self``: text that the model writes itself; None is what the recipe says.
        recipe: how; None is the default recipe.
        report: shows the progress.
        devices: where to compute. The model runs on the first; matrices are decomposed on all of them.
        work: the work folder; None: ``output`` with ``.work`` behind it. It is removed when the file is there.
        restart: discard what an earlier run left in the work folder.
        keep_work: do not remove the work folder.
        volume_size: bytes that an object may have, or a size as ``4GiB``; a larger file becomes several, as of
            `bsformat.repack`.

    Raises:
        ModelError: the model cannot be read or packed. WriteError: the file cannot be written, or the work folder
            belongs to another packing.
    """
    recipe, report = recipe or Recipe(), report or Silent()
    if calib is not None:
        recipe = recipe.changed({"calib.text": os.fspath(calib)})
    path = os.fspath(output)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise WriteError("the folder does not exist; create it first", where=folder)
    largest = None if volume_size is None else bsformat.parse_size(volume_size)
    if largest is not None:
        volume_name(path, 2)  # a name that volumes cannot have is found now, and not after the work
    places = [torch.device(device) for device in devices]
    outline = open_outline(source, revision=recipe.model.revision)
    found = survey(outline.model)
    targets = [t for t in found.targets if chain_options(recipe, t).mode == "pack"]
    why_raw = found.raw | {t.name: "the recipe leaves it as it is" for t in found.targets if t not in targets}
    if not targets:
        raise ModelError(
            "has nothing to pack: no linear layer, embedding, Conv1D or stack of experts that is large enough",
            where=os.fspath(source),
            reason="nothing-to-pack",
        )
    identity = _identity(outline, recipe, places[0])
    with WorkFolder(work or f"{path}.work", identity, restart=restart, keep=keep_work) as kept:
        job = _Job(outline, targets, why_raw, recipe, report, places, kept)
        with _repeatable(places[0]):
            job.draft()
        root = job.finish(path, largest)
        about = kept.load_json(_ABOUT)
    packed = {t.name for t in targets}
    raw = tuple(n for n, _ in outline.model.named_parameters() if n not in packed)
    with bsformat.open(path, root=root) as container:
        size = container.size
    return Packed(path, root, size, raw, why_raw, about["whole"], about["untuned"])


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


def _identity(outline: Outline, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Everything that determines the bytes of the file."""
    import transformers

    small = blake3.blake3()
    for name, data in sorted(outline.files.items()):
        small.update(f"{name} {len(data)} ".encode() + data)
    text = recipe.calib.text
    if text != "self":
        try:
            text = f"{os.path.basename(text)} {blake3.blake3(Path(text).read_bytes()).hexdigest()}"
        except OSError as error:
            raise ModelError(f"no text that can be read ({error.strerror})", where=text, reason="text") from None
    versions = {"bitstack": bsformat.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "model": [outline.place.name, outline.digest(), small.hexdigest()],
        "calibration text": text,
        "recipe": recipe.changed({"calib.text": os.path.basename(recipe.calib.text)}).to_json(),
        "software": versions,
        "device": [device.type, has_fast_bfloat16()] if device.type == "cpu" else [device.type],
    }


@dataclass(slots=True)
class _Job:
    """One packing: what it works on."""

    outline: Outline
    targets: list[Target]
    why_raw: Mapping[str, str]
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
        work, outline, recipe = self.work, self.outline, self.recipe
        if work.has(_DRAFT):
            return
        values = Tensors(outline, work)
        self._check(values)
        residency = Residency(outline, values, device=self.devices[0], dtype=self.dtype)

        def whole() -> AbstractContextManager[None]:
            return residency.holding(residency.names)

        try:
            found = texts(
                outline.model, outline.tokenizer, outline.task, recipe.calib.text, recipe, self.report, work, whole
            )
        except ModelError as error:
            raise error.at(outline.place.source) from None
        producer = Producer(
            outline,
            values,
            residency,
            self.targets,
            recipe=recipe,
            work=work,
            devices=self.devices,
            report=self.report,
        )
        dense, why = producer.produce(found.calib, found.heldout)
        extra = _provenance(outline, found.calib, recipe, self.why_raw)

        def write(name: str, tuned: Mapping[str, torch.Tensor] | None = None) -> None:
            with self.report.stage("write", len(outline.names), "tensor") as advance:
                compress, file = recipe.save.codec == "zstd", work.file(name)
                write_file(
                    file, outline, values, self.targets, producer.blocks, extra, advance, tuned=tuned, compress=compress
                )

        about = {"dense": dense, "whole": why, "untuned": ""}
        if recipe.tune.steps and not len(found.tune):
            causal = outline.task == "causal"
            about["untuned"] = "the text is too short" if causal else "only models that continue a text can be"
        elif len(found.tune):
            if not work.has(_UNTUNED):
                write(_UNTUNED)
            about["untuned"] = tune_scales(
                work, _UNTUNED, outline.model, whole, found.tune, recipe, self.devices[0], self.report
            )
        # Before the draft, which says that all of this is done.
        save_windows(work, found.heldout)
        if not work.has(_ABOUT):
            work.save_json(_ABOUT, about)
        tuned = load_tuned(work)
        if recipe.order.method == "worth":
            write(_DRAFT, tuned)
        else:
            self._reorder(lambda name: write(name, tuned), whole, found.calib)
        work.drop(_UNTUNED)
        producer.drop()

    def _reorder(
        self, write: Callable[[str], None], whole: Callable[[], AbstractContextManager[None]], windows: Windows
    ) -> None:
        """Write the file in one of the paper's orders, which are measured on a file in another."""
        work = self.work
        if not work.has(_UNORDERED):
            write(_UNORDERED)
        known = {int(k): v for k, v in work.load_json(_SWEEP).items()} if work.has(_SWEEP) else None
        with bsformat.open(work.file(_UNORDERED)) as container, whole():
            order = order_of_paper(
                container,
                self.outline.model,
                windows,
                self.recipe,
                self.report,
                known=known,
                keep=lambda scores: work.save_json(_SWEEP, {str(k): v for k, v in scores.items()}),
            )
            bsformat.rewrite(container, work.file(_DRAFT), order=order)
        work.drop(_UNORDERED)

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

    def finish(self, path: str, volume_size: int | None) -> str:
        """Measure the quality curve, and write the file to its place."""
        dense = float(self.work.load_json(_ABOUT)["dense"])
        with bsformat.open(self.work.file(_DRAFT)) as container:
            curves = measure_curve(
                container, self.work, dense, self.recipe.eval.curve_points, self.devices[0], self.dtype, self.report
            )
            return bsformat.rewrite(container, path, curves=curves, volume_size=volume_size)


def _provenance(outline: Outline, windows: Windows, recipe: Recipe, raw: Mapping[str, str]) -> dict[str, Any]:
    model = outline.model
    return {
        "model": {
            "name": outline.place.name,
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "calibration": {"text": windows.name, "tokens": windows.ids.numel(), "window": windows.ids.shape[1]},
        # The name of a text, not the path to it on one machine.
        "recipe": recipe.changed({"calib.text": windows.name}).to_json(),
    } | ({"raw": dict(raw)} if raw else {})
