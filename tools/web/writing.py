"""Writing token by token: what is said after each, who may compute when, and how it is ended."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer


class Turns:
    """Lets several writers compute one token after the other, so that each has all processors while it does.

    Two models that compute at the same time on a CPU wait for each other's threads more than they compute.
    """

    def __init__(self, writers: Sequence[int]) -> None:
        self._order = list(writers)
        self._changed = threading.Condition()

    def wait(self, writer: int) -> None:
        """Until it is this one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == writer)

    def pass_on(self, writer: int) -> None:
        """Give the turn to the next, and wait for one's own."""
        with self._changed:
            self._order.append(self._order.pop(0))
            self._changed.notify_all()
        self.wait(writer)

    def leave(self, writer: int) -> None:
        """Take no more turns."""
        with self._changed:
            if writer in self._order:
                self._order.remove(writer)
            self._changed.notify_all()


class _Listener(BaseStreamer):
    """Gets tokens from ``generate``, and says the text of all of them so far."""

    def __init__(self, tokenizer: Any, say: Callable[[str, int], None]) -> None:
        self._tokenizer, self._say = tokenizer, say
        self._prompt, self._tokens, self._whole = True, list[int](), ""

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then one token at a time."""
        if self._prompt:
            self._prompt = False
            return
        self._tokens += value.reshape(-1).tolist()
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        # A character may come in several tokens: until the last of them is there it decodes to a replacement.
        self._say(text.rstrip("\ufffd"), len(self._tokens))
        self._whole = text

    def end(self) -> None:
        """There is no more: what is not whole yet stays so."""
        if self._whole.endswith("\ufffd"):
            self._say(self._whole, len(self._tokens))


class _Between(StoppingCriteria):
    """Called after every token: passes the turn on, and ends the writing when asked to."""

    def __init__(self, stop: threading.Event, turns: Turns | None, writer: int) -> None:
        self._stop, self._turns, self._writer = stop, turns, writer
        self.waited = 0.0

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        started = time.monotonic()
        if self._turns is not None:
            self._turns.pass_on(self._writer)
        self.waited += time.monotonic() - started
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device, dtype=torch.bool)


def write(
    model: Any,
    tokenizer: Any,
    inputs: Any,
    max_new_tokens: int,
    say: Callable[[str, int], None],
    stop: threading.Event,
    turns: Turns | None = None,
    writer: int = 0,
) -> float:
    """Continue a prompt with the likeliest tokens; the model may be resized meanwhile.

    Args:
        inputs: what the tokenizer made of the prompt, one sequence.
        say: called with the text and the number of tokens so far, after every token.
        stop: set, it ends the writing after the token under way.
        turns, writer: with whom to take turns, and as whom; None: with nobody.

    Returns:
        Seconds in which it computed, without those in which it was another's turn.
    """
    if turns is not None:
        turns.wait(writer)
    between = _Between(stop, turns, writer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    started = time.monotonic()
    try:
        with torch.no_grad():
            model.generate(
                **inputs.to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                streamer=_Listener(tokenizer, say),
                stopping_criteria=StoppingCriteriaList([between]),
            )
    finally:
        if turns is not None:
            turns.leave(writer)
    return time.monotonic() - started - between.waited
