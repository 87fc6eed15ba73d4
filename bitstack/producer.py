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
from .design import Judge, worths_at
from .evaluation import perplexity
from .layerwise import LayerwiseStatistics
from .measure import whole_loss
from .outline import Outline, Tensors
from .packing import chain_options
from .progress import Advance, Reporter
from .recipe import Recipe
from .residency import Residency
from .runner import LayerRunner, find_layers
from .targets import Target
from .task import METRICS
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
        self._judge = Judge((), 1.0)

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
        if windows.task != "causal":
            return None, "only causal language models can"
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
        few = min(count, max(1, self._recipe.calib.gradient_tokens // length))
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
        outside = statistics.outside()
        worth = statistics.whole_losses() | self._whole_losses(statistics.others, outside)
        self._judge = self._judged(worth)
        weights = sum(t.rows * t.columns for t in self._targets)
        with self._report.stage("layers", 2 * weights, "weight", self._done(statistics)) as advance:
            for number, targets in enumerate(statistics.by_layer):
                if self._missing(targets) or not statistics.has_passed(number):
                    taken = statistics.layer(number, _share(advance, targets, count + len(heldout)))
                    self._make(targets, taken, advance)
                statistics.leave(number)
            if self._missing(statistics.others):
                self._make(statistics.others, outside, lambda n: advance(2 * n))
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
                    taken = calibrate(
                        model,
                        self._targets,
                        windows,
                        gradient_tokens=self._recipe.calib.gradient_tokens,
                        progress=advance,
                    )
                dense = 0.0
                if heldout.task in METRICS:
                    with self._report.stage("measure dense", heldout.ids.numel(), "token") as advance:
                        dense = perplexity(model, heldout, progress=advance)
            self._judge = self._judged(self._whole_losses(self._targets, taken))
            done = _weights(self._made(self._targets))
            with self._report.stage("decompose", _weights(self._targets), "weight", done) as advance:
                self._make(self._targets, taken, advance)
            self._work.save_json(_DENSE, dense)

    # Blocks

    def _whole_losses(self, targets: Sequence[Target], statistics: Statistics) -> dict[str, float]:
        """The loss of each target that is all zeros."""
        return {t.name: float(whole_loss(t.matrix(self._values.get(t.name).float()), t, statistics)) for t in targets}

    def _judged(self, losses: dict[str, float]) -> Judge:
        """What weighs designs: the budgets of the recipe, at the worth that a byte has there in this model."""
        settings = self._recipe.decompose
        matrices = [(t.rows * t.columns, losses[t.name]) for t in self._targets]
        return Judge(worths_at(settings.bits, matrices), settings.emphasis)

    def _missing(self, targets: Sequence[Target]) -> list[Target]:
        return [t for t in targets if not self._work.has(_step(self._number[t.name]))]

    def _made(self, targets: Sequence[Target]) -> list[Target]:
        return [t for t in targets if self._work.has(_step(self._number[t.name]))]

    def _make(self, targets: Sequence[Target], statistics: Statistics, progress: Advance) -> None:
        """Make the blocks of those targets that have none yet, as many at once as there are devices.

        Targets of one shape are made together, all of them again if one is missing: what comes out must not depend on
        where an earlier run was ended.
        """

        def make(device: torch.device, together: Sequence[Target], missing: int) -> None:
            numbers = [self._number[t.name] for t in together]
            make_blocks(
                self._work,
                [_step(number) for number in numbers],
                together,
                [self._values.get(t.name) for t in together],
                statistics,
                chain_options(self._recipe, together[0]),
                self._judge,
                self._recipe.seed + 1000 * numbers[0],
                device,
            )
            progress(missing)

        alike: dict[tuple[int, int, int, bool], list[Target]] = {}
        for target in targets:
            alike.setdefault((target.rows, target.columns, target.group_rows, target.by_token), []).append(target)
        # The largest first, or one device works on it while the others have nothing left to do.
        groups = sorted(alike.values(), key=_weights, reverse=True)
        jobs = [
            partial(make, together=group, missing=_weights(missing))
            for group in groups
            if (missing := self._missing(group))
        ]
        over_devices(jobs, self._devices)


def over_devices(jobs: Sequence[Callable[[torch.device], Any]], devices: Sequence[torch.device]) -> None:
    """Run all jobs, one at a time on each device. The first error is raised, once those that run have ended.

    The cores of a CPU are devices of their own: what a job computes does not depend on how many there are, and small
    steps of several jobs at once keep them busier than each step spread over all.
    """
    places = [d for d in devices for _ in range(torch.get_num_threads() if d.type == "cpu" else 1)]
    free: queue.SimpleQueue[torch.device] = queue.SimpleQueue()
    for device in places:
        free.put(device)

    def run(job: Callable[[torch.device], Any]) -> None:
        device = free.get()
        try:
            if device.type == "cpu":
                torch.set_num_threads(1)  # of this thread
            job(device)
        finally:
            free.put(device)

    for device in devices:
        if device.type == "cuda":
            # The first use of torch's linear algebra loads it, which must not happen in two threads at once.
            torch.linalg.cholesky(torch.eye(1, device=device))
            torch.linalg.inv(torch.eye(1, device=device))
    with ThreadPoolExecutor(len(places)) as pool:
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
