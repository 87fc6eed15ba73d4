"""Two budgets of one file, the model or the models that hold them, and the texts that they write."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from bitstack.tools.generate_command import prompt_inputs
from bsformat import BstkError, Plan
from bsformat.errors import ModelError, ResizeError

from .room import Room
from .writing import Turns, write


@dataclass(frozen=True, slots=True)
class Standing:
    """What a side holds.

    Attributes:
        budget: bytes that it may have.
        plan: the prefix for that budget.
        expected: bytes that the prefix takes in this model's type.
        resident_bytes: bytes of the weights that are in its model now, counted from the tensors; None while the one
            model there is stands at the other side's budget.
        n_blocks: blocks that are resident now, or would be.
    """

    budget: int
    plan: Plan
    expected: int
    resident_bytes: int | None
    n_blocks: int


@dataclass(frozen=True, slots=True)
class Written:
    """What a side has written so far; ``text`` is None when it begins, which is when one model is resized.

    Attributes:
        seconds: in which it computed, when it is done; None before.
        error: why it ended early, in one line.
    """

    side: int
    text: str | None
    tokens: int = 0
    seconds: float | None = None
    error: str | None = None


class Sides:
    """Side 0 and side 1. Every method may be called by any thread.

    Args:
        models: from `bitstack.load`, one or two, the first at the first budget of ``room``.
    """

    def __init__(self, models: list[Any], tokenizer: Any, room: Room) -> None:
        self.room, self._models, self._tokenizer = room, models, tokenizer
        self._budgets = list(room.budgets)
        self._context = int(models[0].bitstack.needs.context)
        self._lock = threading.Lock()
        self._writing, self._stop = threading.Lock(), threading.Event()
        self._at = 0
        self._busy = False
        self._workers = ThreadPoolExecutor(len(models), "bstk-demo")

    @property
    def two(self) -> bool:
        """Whether each side has a model of its own."""
        return len(self._models) == 2

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        device: torch.device = self._models[0].bitstack.device
        return device

    def _model(self, side: int) -> Any:
        return self._models[side if self.two else 0]

    def standing(self, side: int) -> Standing:
        """What a side holds now."""
        elastic, budget = self._model(side).bitstack, self._budgets[side]
        plan = elastic.plan_for(budget)
        if self.two or self._at == side:
            return Standing(
                budget, plan, plan.resident_bytes + elastic.widening, elastic.resident_bytes, elastic.plan.n_blocks
            )
        return Standing(budget, plan, plan.resident_bytes + elastic.widening, None, plan.n_blocks)

    def move(self, side: int, budget: int) -> None:
        """Give a side another budget. Its model is resized at once, also while it writes.

        The one model of both sides goes to the side that was moved last, unless it writes for the other: then it comes
        to this budget when it is this side's turn.

        Raises:
            BstkError: the resize failed; the model is what it was.
        """
        budget = min(max(budget, self.room.least), self.room.most)
        with self._lock:
            self._budgets[side] = budget
            if not self.two and self._busy and self._at != side:
                return
            self._at = side
        self._resize(side)

    def _resize(self, side: int) -> None:
        # A later one has taken its place: that is what was wanted last.
        with suppress(ResizeError):
            self._model(side).bitstack.resize(self._budgets[side])

    def write(self, prompt: str, max_new_tokens: int, raw: bool = False) -> Iterator[Written]:
        """Let both sides write, at the same time with two models, one after the other with one.

        What is under way is ended first. Leaving the iterator ends the writing.

        Raises:
            ModelError: the prompt has no tokens, or more than there is room for, or the chat template fails.
        """
        inputs = prompt_inputs(self._tokenizer, prompt, raw)
        length = inputs["input_ids"].shape[1]
        if not 0 < length < self._context:
            raise ModelError(
                f"the prompt has {length} tokens; there is room for 1 to {self._context - 1} (--context)",
                reason="prompt",
            )
        max_new_tokens = min(max_new_tokens, self._context - length)
        self._stop.set()
        with self._writing:
            stop = self._stop = threading.Event()
            said: queue.SimpleQueue[Written | None] = queue.SimpleQueue()
            groups = [[0], [1]] if self.two else [[0, 1]]
            on_cpu = self._model(0).device.type == "cpu"
            turns = Turns([0, 1]) if self.two and on_cpu else None

            def work(sides: list[int]) -> None:
                for side in sides:
                    said.put(self._one(side, inputs, max_new_tokens, said, stop, turns))
                said.put(None)

            self._busy = True
            tasks = [self._workers.submit(work, sides) for sides in groups]
            try:
                for _ in tasks:
                    while (event := said.get()) is not None:
                        yield event
            finally:
                stop.set()
                for task in tasks:
                    task.result()
                self._busy = False

    def _one(
        self,
        side: int,
        inputs: Any,
        max_new_tokens: int,
        said: "queue.SimpleQueue[Written | None]",
        stop: threading.Event,
        turns: Turns | None,
    ) -> Written:
        """Let one side write, and give what it ends with; an error is said there, whatever it is."""
        last = Written(side, "")

        def say(text: str, tokens: int) -> None:
            nonlocal last
            last = Written(side, text, tokens)
            said.put(last)

        try:
            if stop.is_set():
                return Written(side, "", error="stopped")
            with self._lock:
                self._at = side
            if not self.two:
                self._resize(side)
            said.put(Written(side, None))
            seconds = write(self._model(side), self._tokenizer, inputs, max_new_tokens, say, stop, turns, side)
            return Written(side, last.text, last.tokens, seconds, "stopped" if stop.is_set() else None)
        except BstkError as error:
            return Written(side, last.text, last.tokens, error=str(error))
        except Exception as error:  # libraries behind it raise whatever they like; the page goes on
            return Written(
                side, last.text, last.tokens, error=" ".join(f"{type(error).__name__}: {error}".split())[:300]
            )
        finally:
            if turns is not None:
                turns.leave(side)

    def stop(self) -> None:
        """End the writing after the token under way."""
        self._stop.set()

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._workers.shutdown()
