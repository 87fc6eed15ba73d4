"""One pass over a little text, forward and backward, that shows what the loss feels (`bitstack.collect`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bsformat.errors import ModelError

from .collect import Collector, LinearStatistics, Statistics, TokenStatistics
from .targets import Target
from .text import Windows

__all__ = ["LinearStatistics", "Statistics", "TokenStatistics", "calibrate"]


def calibrate(
    model: Any,
    targets: list[Target],
    windows: Windows,
    *,
    batch_tokens: int = 512,
    progress: Callable[[int], object] = lambda n: None,
) -> Statistics:
    """Run the text through the dense model, forward and backward, and collect the statistics of all targets.

    Args:
        model: a causal language model with dense weights.
        batch_tokens: tokens at a time; bounds the memory of activations and logits.
        progress: called with the number of tokens done since the last call.

    Raises:
        ModelError: the model's logits are not finite.
    """
    collector = Collector(targets, _path(model, model.get_input_embeddings()))
    per_batch = max(1, batch_tokens // windows.ids.shape[1])
    with collector.attached(model), torch.enable_grad():
        for ids in torch.split(windows.ids, per_batch):
            logits = model(input_ids=ids, use_cache=False).logits
            # The last position has no label; ignoring it costs less than cutting the logits, which are large.
            labels = nn.functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
            if not torch.isfinite(loss):
                raise ModelError("computes logits that are NaN or infinite", reason="model-values")
            loss.backward()  # type: ignore[no-untyped-call]
            collector.forget_inputs()
            progress(ids.numel())
    return collector.statistics(windows.ids.numel())


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next((path for path, module in model.named_modules() if module is wanted), "")
