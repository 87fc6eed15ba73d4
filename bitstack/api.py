"""The two things that people do: pack a model, and load one. Here the parts are put together."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import bsformat
from bitstack import loader
from bsformat import Container, Curve, Plan
from bsformat.errors import ModelError

from .calibrate import calibrate
from .checkpoint import Checkpoint, open_checkpoint
from .packing import Recipe, write_blocks
from .evaluation import perplexity
from .progress import Reporter, Silent
from .shell import Shell
from .targets import find_targets
from .text import Windows, file_windows, self_windows


class Elastic:
    """The handle of a loaded model, ``model.bitstack``: what is resident, and changing it.

    Attributes:
        container: the open file; it counts the requests and bytes of all reads in ``container.source``.
    """

    def __init__(self, container: Container, shell: Shell) -> None:
        self.container = container
        self._shell = shell
        self._resident = loader.Resident(container, shell)

    @property
    def plan(self) -> Plan:
        """The prefix that is resident now."""
        return self._resident.plan

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights in the model, counted from its tensors; at most the budget."""
        return self._shell.resident_bytes

    def resize(self, budget: int | str | None, progress: Callable[[int], object] = lambda n: None) -> Plan:
        """Grow or shrink to another budget. Growing reads only the new bytes, shrinking frees the last blocks.

        Args:
            budget: bytes, a size, a percentage of all blocks, or ``auto``; counts every resident byte of the weights.
            progress: called with the number of bytes added or dropped since the last call.

        Returns:
            The plan that is resident now.

        Raises:
            BudgetError: below the minimum.
            SourceError, FormatError: bytes could not be read; what was resident still is.
        """
        free = self.resident_bytes if budget in (None, "auto") else 0
        wanted = loader.resolve_budget(budget, self.container, self._shell.device) + free
        self._resident.move_to(self.plan_for(wanted), progress)
        return self.plan

    def plan_for(self, budget: int) -> Plan:
        """The prefix for ``budget`` bytes, with raw tensors in the type that this model computes in."""
        return self.container.planner.plan(budget - self._shell.widening)

    def tokenizer(self) -> Any:
        """The tokenizer in the file, read from it now."""
        return load_tokenizer(self.container)

    def close(self) -> None:
        """Close the file; the model stays as it is, and can shrink but not grow."""
        self.container.close()


def load(
    uri: str | os.PathLike[str] | Container | bsformat.ByteSource,
    budget: int | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    root: str | None = None,
    progress: Callable[[int], object] = lambda n: None,
    **storage_options: Any,
) -> Any:
    """A transformers model with as many blocks as fit a budget; ``model.bitstack`` resizes it.

    Reads the head and exactly the prefix of the plan; every block is checked before it is used. The dense weights
    never exist.

    Args:
        uri: a path, ``http(s)://``, ``s3://``, anything fsspec opens, or an open container.
        budget: resident bytes of the weights: a number, ``80MiB``, ``60%`` of all blocks, or ``auto`` (or None):
            what the device has free.
        device: where the weights go; None: CUDA if there is one, else the CPU.
        dtype: what the model computes in; None: bfloat16 on CUDA, float32 on the CPU.
        root: the root digest (64 hexadecimal digits) that the file must have.
        progress: called with the number of resident bytes added since the last call.
        storage_options: given to the fsspec file system.

    Raises:
        SourceError, FormatError, BudgetError, ModelError: one line each that says what, where, and what to do.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    container = uri if isinstance(uri, Container) else bsformat.open(uri, root=root, **storage_options)
    try:
        shell = Shell(container, device=place, dtype=kind)
        elastic = Elastic(container, shell)
        elastic.resize(budget, progress)
        shell.check_complete()
    except BaseException:
        if container is not uri:
            container.close()
        raise
    shell.model.bitstack = elastic
    return shell.model


def load_tokenizer(container: Container) -> Any:
    """The tokenizer that travels in a file.

    Raises:
        ModelError: the file has none, or this version of transformers cannot read it.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for item in container.metadata.attachments:
            path = os.path.join(folder, *item.name.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(container.attachment(item.name))
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            detail = " ".join(str(error).replace(folder, "").split())[:300]
            raise ModelError(f"holds no usable tokenizer: {detail}", where=container.uri) from None


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` made: where, its root digest, bytes of the file, and names of the parameters kept raw."""

    path: str
    root: str
    size: int
    raw: tuple[str, ...]


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
    targets = find_targets(checkpoint.model)
    if not targets:
        raise ModelError(
            "has nothing to pack: no linear layer, embedding or Conv1D that is large enough",
            where=os.fspath(source),
            reason="nothing-to-pack",
        )
    windows, heldout = _texts(checkpoint, calib, recipe, report)
    with report.stage("calibrate", windows.ids.numel(), "token") as advance:
        statistics = calibrate(checkpoint.model, targets, windows, progress=advance)
    with report.stage("measure dense", heldout.ids.numel(), "token") as advance:
        dense = perplexity(checkpoint.model, heldout, progress=advance)
    extra = _provenance(checkpoint, windows, recipe)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{os.path.basename(path)}.") as scratch:
        draft = os.path.join(scratch, "draft.bstk")
        write_blocks(draft, checkpoint, targets, statistics, recipe, extra, report)
        packed = {t.name for t in targets}
        raw = tuple(n for n, _ in checkpoint.model.named_parameters() if n not in packed)
        del checkpoint, statistics
        with bsformat.open(draft) as container:
            curve = _measure_curve(container, heldout, dense, recipe, report)
            root = bsformat.rewrite(container, path, curves=[curve])
    return Packed(path, root, os.path.getsize(path), raw)


def _texts(
    checkpoint: Checkpoint, calib: str | os.PathLike[str], recipe: Recipe, report: Reporter
) -> tuple[Windows, Windows]:
    """Windows to calibrate on, and others, held out, for the quality curve."""
    limit = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None) or recipe.window
    window = min(recipe.window, int(limit))
    count, heldout = max(1, recipe.calib_tokens // window), max(1, recipe.heldout_tokens // window)
    if os.fspath(calib) == "self":
        with report.stage("write text", (count + heldout) * (window - 1), "token") as advance:
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


def _provenance(checkpoint: Checkpoint, windows: Windows, recipe: Recipe) -> dict[str, Any]:
    model = checkpoint.model
    return {
        "model": {
            "name": checkpoint.name,
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "calibration": {"text": windows.name, "tokens": windows.ids.numel(), "window": windows.ids.shape[1]},
        "recipe": recipe.to_json(),
    }


def _measure_curve(container: Container, heldout: Windows, dense: float, recipe: Recipe, report: Reporter) -> Curve:
    """Perplexity of the held-out text at budgets from the smallest to all blocks, each loaded as a user loads it."""
    low, high = container.minimum_bytes, container.total_bytes
    steps = recipe.curve_points
    # Closer together where the curve is steep, at the small end.
    budgets = [low + int((high - low) * (0.2 + 0.8 * (i / max(steps - 1, 1)) ** 1.5)) for i in range(steps)]
    counts = sorted({container.planner.plan(max(b, low)).n_blocks for b in budgets})
    points = []
    with report.stage("measure curve", len(counts) * heldout.ids.numel(), "token") as advance:
        model = load(container, container.planner.prefix(counts[0]).resident_bytes, "cpu", torch.float32)
        for count in counts:
            model.bitstack.resize(container.planner.prefix(count).resident_bytes)
            points.append((model.bitstack.plan.n_blocks, perplexity(model, heldout, progress=advance)))
    finite = tuple((n, v) for n, v in points if v < float("inf"))
    return Curve("perplexity", heldout.name, heldout.ids.numel(), heldout.ids.shape[1], dense, finite)
