"""The statistics of `calibrate`, taken one layer at a time.

First the gradients: a few windows go forward through all layers, their hidden states at every boundary are kept, and
the gradient of the loss comes back layer by layer. Then all windows go forward through one layer after the other, and
each layer's second moments are complete when they leave it. So one layer's weights and moments are in memory at a
time, and hidden states lie in files that the system maps.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from .calibrate import path_of
from .collect import Collector, Statistics
from .kept import load_statistics, save_statistics
from .measure import whole_loss
from .progress import Advance
from .runner import LayerRunner, next_token_loss
from .targets import Target
from .work import WorkFolder

_OUTSIDE = "outside.safetensors"
_Store = Callable[[slice, torch.Tensor], None]


class LayerwiseStatistics:
    """Takes the statistics of a model's targets, each step kept in a work folder.

    Args:
        runner: runs the model; its small weights (`LayerRunner.rest`) are held.
        targets: whose statistics are wanted.
        ids: windows of token ids [W, T].
        counted: how many of them, from the first on, the statistics are taken from; the perplexity of the others is
            measured on the way.
        chosen: those of the counted ones whose gradients are taken.
        batch_tokens: tokens at a time; bounds the memory of activations.
    """

    def __init__(
        self,
        runner: LayerRunner,
        targets: list[Target],
        ids: torch.Tensor,
        *,
        counted: int,
        chosen: list[int],
        work: WorkFolder,
        batch_tokens: int,
    ) -> None:
        self._runner, self._ids, self._counted, self._work = runner, ids, counted, work
        self._chosen = torch.tensor(chosen)
        self._batch = max(1, batch_tokens // ids.shape[1])
        self._device, self._dtype = runner.residency.device, runner.residency.dtype
        self.by_layer: list[list[Target]] = [[] for _ in runner.layers]
        self.others: list[Target] = []
        for target in targets:
            self._home(target).append(target)

    def _home(self, target: Target) -> list[Target]:
        """Where a target belongs; `LayerRunner` makes sure that it is one layer, or none."""
        start = f"{self._runner.path}."
        inside = [use.module.removeprefix(start) for use in target.uses if use.module.startswith(start)]
        layers = {int(path.split(".")[0]) for path in inside}
        return self.by_layer[layers.pop()] if layers else self.others

    # Gradients

    @property
    def gradient_steps(self) -> int:
        """What `take_gradients` counts in all: forward once, backward three times as long."""
        return 4 * len(self._runner.layers)

    @property
    def gradients_done(self) -> int:
        """How much of that an earlier run has done."""
        if self._work.has(_OUTSIDE):
            return self.gradient_steps
        count = range(len(self._runner.layers))
        return sum(self._work.has(_chosen(n + 1)) + 3 * self._work.has(_gradient(n)) for n in count)

    def take_gradients(self, progress: Advance) -> None:
        """Take the mean squared gradients of all targets, and all statistics of those outside of the layers."""
        runner, work, last = self._runner, self._work, len(self._runner.layers)
        if work.has(_OUTSIDE):
            return
        ids = self._ids[self._chosen]
        with torch.no_grad():
            if not work.has(_chosen(0)):
                self._start(_chosen(0), ids)
            for number in range(last):
                if not work.has(_chosen(number + 1)):
                    with runner.layer(number), self._growing(_chosen(number + 1), len(ids)) as (store, batches):
                        old = self._open(_chosen(number), len(ids))
                        with self._cheaper():
                            for rows in batches:
                                store(rows, runner.run_layer(number, self._moved(old[rows])))
                    progress(1)
        outside = self._collector(self.others)
        self._end(outside, ids)
        for number in reversed(range(last)):
            if not work.has(_gradient(number)):
                self._go_back(number, len(ids))
                progress(3)
        self._finish(outside, ids)
        for number in range(last + 1):
            work.drop(_chosen(number))
            work.drop(_slope(number))

    def _start(self, name: str, ids: torch.Tensor) -> None:
        """Keep what the first layer is given."""
        with self._runner.tables(), self._growing(name, len(ids)) as (store, batches):
            for rows in batches:
                store(rows, self._runner.run_prologue(self._runner.embed(ids[rows])))

    def _end(self, outside: Collector, ids: torch.Tensor) -> None:
        """From the last boundary to the loss and back."""
        last = len(self._runner.layers)
        kept = self._open(_chosen(last), len(ids))
        with self._runner.tables(), self._growing(_slope(last), len(ids), 1) as (store, batches), torch.enable_grad():
            for rows in batches:
                state = self._moved(kept[rows]).requires_grad_()
                # What comes before the layers runs once more, and notes its input: it must be the true one. The look-up
                # itself is noted in `_finish`.
                embedded = self._runner.embed(ids[rows])
                with outside.attached(self._runner.model):
                    logits = self._runner.run_epilogue(state, embedded)
                    loss = next_token_loss(logits, ids[rows].to(self._device))
                    store(rows, torch.autograd.grad(loss, state)[0])

    def _go_back(self, number: int, count: int) -> None:
        """From the boundary behind a layer to the one before it."""
        collector = self._collector(self.by_layer[number])
        old, kept = self._open(_slope(number + 1), count), self._open(_chosen(number), count)
        with self._runner.layer(number):
            with (
                self._attached(collector, number),
                torch.enable_grad(),
                self._growing(_slope(number), count) as (store, batches),
            ):
                for rows in batches:
                    state = self._moved(kept[rows]).requires_grad_()
                    with self._cheaper():
                        out = self._runner.run_layer(number, state).to(state.dtype)
                    store(rows, torch.autograd.grad(out, state, self._moved(old[rows]))[0])
                    collector.forget_inputs()
            # Detached: a module that keeps its forward has a stand-in for its weight until then.
            statistics = collector.statistics(count * self._ids.shape[1])
            kept_of = {name: s.output for name, s in statistics.linear.items()}
            kept_of |= {f"{t.name}#whole": self._whole(t, statistics) for t in self.by_layer[number]}
        self._work.save(_gradient(number), kept_of)

    def _collector(self, targets: list[Target]) -> Collector:
        model = self._runner.model
        return Collector(targets, path_of(model, model.get_input_embeddings()))

    def _attached(self, collector: Collector, number: int) -> AbstractContextManager[None]:
        return collector.attached(self._runner.layers[number], f"{self._runner.path}.{number}")

    def _whole(self, target: Target, statistics: Statistics) -> torch.Tensor:
        """The loss of a target that is all zeros: what there is to win with it. Its weight must be held."""
        weight = target.matrix(self._runner.model.get_parameter(target.name).detach().float())
        return whole_loss(weight, target, statistics).cpu()

    def whole_losses(self) -> dict[str, float]:
        """By the name of the target; of all those in layers, once `take_gradients` has ended."""
        found: dict[str, float] = {}
        for number, targets in enumerate(self.by_layer):
            kept = self._work.load(_gradient(number))
            found |= {t.name: float(kept[f"{t.name}#whole"]) for t in targets}
        return found

    def _finish(self, outside: Collector, ids: torch.Tensor) -> None:
        """From the first boundary to the embedded tokens."""
        runner, old = self._runner, self._open(_slope(0), len(ids))
        with runner.tables(), outside.attached(runner.model):
            for rows in self._batches(len(ids)):
                with torch.enable_grad():
                    state = runner.run_prologue(runner.embed(ids[rows]))
                    if state.requires_grad:
                        state.backward(self._moved(old[rows]))  # type: ignore[no-untyped-call]
                outside.forget_inputs()
            rest = torch.ones(self._counted, dtype=torch.bool)
            rest[self._chosen] = False
            with torch.no_grad():  # the other windows count for the frequency of their tokens only
                for ids_of in torch.split(self._ids[: self._counted][rest], self._batch):
                    runner.embed(ids_of)
        statistics = outside.statistics(self._counted * self._ids.shape[1], ids.numel())
        save_statistics(self._work, _OUTSIDE, statistics)

    def outside(self) -> Statistics:
        """Of the targets outside of the layers."""
        return load_statistics(self._work, _OUTSIDE, self._counted * self._ids.shape[1])

    # Moments

    def has_passed(self, number: int) -> bool:
        """Whether all windows have left a layer."""
        return any(self._work.has(_state(n)) for n in range(number + 1, len(self._runner.layers) + 1))

    def layer(self, number: int, progress: Advance) -> Statistics:
        """Of the targets in one layer; all windows leave it. Layers come one after the other.

        Args:
            progress: called with the number of windows done since the last call.
        """
        runner, work, count = self._runner, self._work, len(self._ids)
        with torch.no_grad():
            if number == 0 and not work.has(_state(0)):
                self._start(_state(0), self._ids)
            collector = self._collector(self.by_layer[number])
            old = self._open(_state(number), count)
            new = not work.has(_state(number + 1))
            with runner.layer(number), self._growing(_state(number + 1), count) as (store, _):
                with self._attached(collector, number), self._cheaper():
                    for rows in self._batches(self._counted):
                        store(rows, runner.run_layer(number, self._moved(old[rows])))
                        collector.forget_inputs()
                        progress(rows.stop - rows.start)
                for rows in self._batches(count, self._counted):
                    if new:
                        store(rows, runner.run_layer(number, self._moved(old[rows])))
                    progress(rows.stop - rows.start)
        statistics = collector.statistics(self._counted * self._ids.shape[1])
        gradients = work.load(_gradient(number))
        for name, own in statistics.linear.items():
            statistics.linear[name] = replace(own, output=gradients[name].to(own.output.device))
        return statistics

    def leave(self, number: int) -> None:
        """Forget what a layer was given: its statistics are not needed any more."""
        self._work.drop(_state(number))

    def perplexity(self, progress: Advance) -> float:
        """Of the windows that are not counted, once all have left the last layer."""
        kept = self._open(_state(len(self._runner.layers)), len(self._ids))
        total, count = 0.0, 0
        with torch.no_grad(), self._runner.tables():
            for row in range(self._counted, len(self._ids)):
                ids = self._ids[row : row + 1].to(self._device)
                total += float(next_token_loss(self._runner.run_epilogue(self._moved(kept[row : row + 1])), ids))
                count += ids.numel() - 1
                progress(ids.numel())
        return math.exp(min(total / count, 700))

    def _cheaper(self) -> AbstractContextManager[object]:
        """Statistics are means over many tokens: on a CPU with the instructions for it, bfloat16 is enough."""
        if self._device.type == "cpu" and has_fast_bfloat16():
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()

    # Hidden states

    def _batches(self, count: int, start: int = 0, size: int | None = None) -> Iterator[slice]:
        step = size or self._batch
        for first in range(start, count, step):
            yield slice(first, min(first + step, count))

    @contextmanager
    def _growing(self, name: str, count: int, size: int | None = None) -> Iterator[tuple[_Store, Iterator[slice]]]:
        """What keeps the hidden states of a new boundary, and the batches of windows to give it.

        One that an earlier run has kept stays: the same would come out.
        """
        batches = self._batches(count, size=size)
        if self._work.has(name):
            yield lambda rows, value: None, batches
            return
        with self._work.array(name, self._shape(count), self._dtype) as new:

            def store(rows: slice, value: torch.Tensor) -> None:
                new[rows] = value.to("cpu", self._dtype)

            yield store, batches

    def _open(self, name: str, count: int) -> torch.Tensor:
        return self._work.open_array(name, self._shape(count), self._dtype)

    def _shape(self, count: int) -> tuple[int, int, int]:
        return count, self._ids.shape[1], self._runner.width

    def _moved(self, state: torch.Tensor) -> torch.Tensor:
        """A copy where the model is."""
        return state.to(self._device, copy=True)


def _chosen(boundary: int) -> str:
    return f"chosen-{boundary:04d}.bin"


def _slope(boundary: int) -> str:
    return f"slope-{boundary:04d}.bin"


def _state(boundary: int) -> str:
    return f"state-{boundary:04d}.bin"


def _gradient(number: int) -> str:
    return f"gradient-{number:04d}.safetensors"


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16."""
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    found: dict[str, Any] = ask()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
