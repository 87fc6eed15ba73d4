"""Passes through the model: some tokens of one sequence, behind its cache."""

import inspect
from dataclasses import dataclass
from typing import Any, Final

import torch

from bsformat.errors import ModelError

#: Layers of a cache behind which a prompt can be read in pieces. Others, those with a recurrent state for one, begin
#: anew with every piece, and do not say so.
_PLAIN: Final = frozenset({"DynamicLayer", "DynamicSlidingWindowLayer"})


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass gave.

    Attributes:
        logits: of the token that follows, 1-D, one for each of the vocabulary.
        cache: keys and values of all tokens so far; the one that was given, longer.
        n_blocks: leading blocks of the file that were resident, the same in all layers.
        resident_bytes: what they take in memory.
    """

    logits: torch.Tensor
    cache: Any
    n_blocks: int
    resident_bytes: int


class Passes:
    """Runs a causal language model from `bitstack.load`, one sequence at a time; for one thread.

    A sequence goes through the model alone, so that its logits are the same bits whatever else is being written.

    Attributes:
        model, elastic: the model, and its handle.
        splits: whether a prompt may be read in pieces.

    Raises:
        ModelError: the model continues no text, or keeps what it has read in a way that is not known here.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.elastic = model, model.bitstack
        if model.config.is_encoder_decoder or not model.can_generate():
            raise self._refused(f"is a {type(model).__name__}, which continues no prompt")
        self._widening = self.elastic.widening
        names = inspect.signature(type(model).forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        cache = self.run([0], None).cache
        if not hasattr(cache, "get_seq_length") or cache.get_seq_length() != 1:
            raise self._refused(f"is a {type(model).__name__}, which keeps what it has read in a way that is not known")
        self.splits = all(type(layer).__name__ in _PLAIN for layer in getattr(cache, "layers", [None]))

    @torch.no_grad()
    def run(self, tokens: list[int], cache: Any) -> Pass:
        """One pass.

        Args:
            tokens: what follows what the cache holds; one at least.
            cache: of the pass before; None at the beginning.
        """
        ids = torch.tensor([tokens], device=self.elastic.device)
        with self.elastic.frozen():
            plan = self.elastic.plan
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **self._options)
        resident = plan.resident_bytes + self._widening
        return Pass(out.logits[0, -1], getattr(out, "past_key_values", None), plan.n_blocks, resident)

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"{what}; bitstack.load gives it to a program", where=self.elastic.container.uri, reason="model-task"
        )
