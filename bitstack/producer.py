"""Blocks of all targets of a model: statistics and decomposition, layer by layer, each step kept in a work folder."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import torch

from bsformat.errors import ModelError

from .blocks import Blocks, make_blocks
from .calibrate import calibrate
from .checkpoint import one_line
from .collect import Statistics
from .evaluation import perplexity
from .layerwise import LayerwiseStatistics
from .outline import Outline, Tensors
from .packing import Recipe, chain_options
from .progress import Advance, Reporter
from .residency import Residency
from .runner import LayerRunner, find_layers
from .targets import Target
from .text import Windows
from .work import WorkFolder

_TRIAL: Final = "trial.json"
_DENSE: Final = "dense.json"
#: Tokens that go through one layer at once.
_BATCH_TOKENS: Final = {"cpu": 2048, "cuda": 16384}


class Producer:
    """Makes the blocks of all targets of a model.

    Args:
        outline: the model. values: its tensors. residency: puts them into the model.
        targets: what is to be packed.
        devices: where targets are decomposed, several at a time; statistics are taken on the first.
    """

    def __init__(
        self,
        outline: Outline,
        values: Tensors,
        residency: Residency,
        targets: Sequence[Target],
        *,
        recipe: Recipe,
        work: WorkFolder,
        devices: Sequence[torch.device],
        report: Reporter,
    ) -> None:
        self._outline, self._values, self._residency = outline, values, residency
        self._targets = list(targets)
        self._number = {target.name: number for number, target in enumerate(self._targets)}
        self._recipe, self._work, self._report = recipe, work, report
        self._devices = list(devices)

    def blocks(self, number: int) -> Blocks:
        """The blocks of a target, by its place among the targets."""
        return Blocks(self._work.file(_step(number)))

    def drop(self) -> None:
        """Forget all blocks: they are in the file now."""
        for number in range(len(self._targets)):
            self._work.drop(_step(number))

    def produce(self, windows: Windows, heldout: Windows) -> tuple[float, str]:
        """Make what is missing.

        Args:
            windows: the text that the statistics are taken from.
            heldout: the text that the dense model's perplexity is measured on.

        Returns:
            That perplexity, and why the model could not be run layer by layer; "" if it could.

        Raises:
            ModelError: a weight, or what the model computes, is not finite.
        """
        runner, why = self._runner(windows)
        if runner is None:
            self._whole(windows, heldout)
        else:
            with self._residency.holding(runner.rest):
                self._by_layers(runner, windows, heldout)
        return float(self._work.load_json(_DENSE)), why

    def _runner(self, windows: Windows) -> tuple[LayerRunner | None, str]:
        """What runs the model layer by layer, or why nothing does."""
        if self._work.has(_TRIAL) and (why := self._work.load_json(_TRIAL).get("why")):
            return None, why
        try:
            runner = LayerRunner(self._residency, find_layers(self._outline.model))
            if self._work.has(_TRIAL):
                runner.findings = self._work.load_json(_TRIAL)["findings"]
            else:
                with self._residency.holding(runner.rest):
                    runner.check(windows.ids[:1])
                self._work.save_json(_TRIAL, {"findings": runner.findings})
        except (ModelError, MemoryError):
            raise
        except Exception as error:  # a model that does not like to be run so may fail in any way
            why = one_line(error)
            self._work.save_json(_TRIAL, {"why": why})
            return None, why
        return runner, ""

    # Layer by layer

    def _by_layers(self, runner: LayerRunner, windows: Windows, heldout: Windows) -> None:
        count, length = windows.ids.shape
        few = min(count, max(1, self._recipe.gradient_tokens // length))
        statistics = LayerwiseStatistics(
            runner,
            self._targets,
            torch.cat([windows.ids, heldout.ids]),
            counted=count,
            chosen=(torch.arange(few) * count // few).tolist(),
            work=self._work,
            batch_tokens=_BATCH_TOKENS[self._residency.device.type],
        )
        total, done = statistics.gradient_steps, statistics.gradients_done
        with self._report.stage("gradients", total, "step", done) as advance:
            statistics.take_gradients(advance)
        weights = sum(t.rows * t.columns for t in self._targets)
        with self._report.stage("layers", 2 * weights, "weight", self._done(statistics)) as advance:
            for number, targets in enumerate(statistics.by_layer):
                if self._missing(targets) or not statistics.has_passed(number):
                    taken = statistics.layer(number, _share(advance, targets, count + len(heldout)))
                    self._make(targets, taken, advance)
                statistics.leave(number)
            if self._missing(statistics.others):
                self._make(statistics.others, statistics.outside(), lambda n: advance(2 * n))
        if not self._work.has(_DENSE):
            with self._report.stage("measure dense", heldout.ids.numel(), "token") as advance:
                self._work.save_json(_DENSE, statistics.perplexity(advance))

    def _done(self, statistics: LayerwiseStatistics) -> int:
        """How much of the stage ``layers`` an earlier run has done."""
        done = 2 * _weights(self._made(statistics.others))
        for number, targets in enumerate(statistics.by_layer):
            if not self._missing(targets) and statistics.has_passed(number):
                done += 2 * _weights(targets)
            else:
                done += _weights(self._made(targets))
        return done

    # The whole model at once

    def _whole(self, windows: Windows, heldout: Windows) -> None:
        """As `calibrate` does it."""
        missing = self._missing(self._targets)
        model = self._outline.model
        if missing or not self._work.has(_DENSE):
            with self._residency.holding(self._residency.names):
                with self._report.stage("calibrate whole model", windows.ids.numel(), "token") as advance:
                    taken = calibrate(model, self._targets, windows, progress=advance)
                with self._report.stage("measure dense", heldout.ids.numel(), "token") as advance:
                    dense = perplexity(model, heldout, progress=advance)
            done = _weights(self._made(self._targets))
            with self._report.stage("decompose", _weights(self._targets), "weight", done) as advance:
                self._make(self._targets, taken, advance)
            self._work.save_json(_DENSE, dense)

    # Blocks

    def _missing(self, targets: Sequence[Target]) -> list[Target]:
        return [t for t in targets if not self._work.has(_step(self._number[t.name]))]

    def _made(self, targets: Sequence[Target]) -> list[Target]:
        return [t for t in targets if self._work.has(_step(self._number[t.name]))]

    def _make(self, targets: Sequence[Target], statistics: Statistics, progress: Advance) -> None:
        """Make the blocks of those targets that have none yet, as many at once as there are devices."""

        def make(device: torch.device, target: Target) -> None:
            number = self._number[target.name]
            make_blocks(
                self._work,
                _step(number),
                target,
                self._values.get(target.name),
                statistics,
                chain_options(self._recipe, target),
                self._recipe.seed + 1000 * number,
                device,
            )
            progress(target.rows * target.columns)

        over_devices([partial(make, target=target) for target in self._missing(targets)], self._devices)


def over_devices(jobs: Sequence[Callable[[torch.device], Any]], devices: Sequence[torch.device]) -> None:
    """Run all jobs, one at a time on each device. The first error is raised, once those that run have ended."""
    if len(devices) == 1:
        for job in jobs:
            job(devices[0])
        return
    free: queue.SimpleQueue[torch.device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def run(job: Callable[[torch.device], Any]) -> None:
        device = free.get()
        try:
            job(device)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def _share(advance: Advance, targets: Sequence[Target], windows: int) -> Advance:
    """Progress in windows as a share of the weights of some targets."""
    weights, seen = _weights(targets), 0

    def moved(count: int) -> None:
        nonlocal seen
        before, seen = weights * seen // windows, seen + count
        advance(weights * seen // windows - before)

    return moved


def _weights(targets: Sequence[Target]) -> int:
    return sum(t.rows * t.columns for t in targets)


def _step(number: int) -> str:
    return f"blocks-{number:05d}.safetensors"
