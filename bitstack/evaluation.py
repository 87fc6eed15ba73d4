"""Perplexity of a causal language model on windows of text."""

import math
from collections.abc import Callable
from typing import Any

import torch

from .text import Windows

#: Positions whose logits are turned into losses at once.
_LOSS_ROWS = 256


def perplexity(
    model: Any, windows: Windows, *, batch_tokens: int = 2048, progress: Callable[[int], object] = lambda n: None
) -> float:
    """exp of the mean negative log-likelihood of every token but the first of its window; windows stand alone.

    Args:
        batch_tokens: tokens that go through the model at once.
        progress: called with the number of tokens done since the last call.
    """
    per_batch = max(1, batch_tokens // windows.ids.shape[1])
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in torch.split(windows.ids, per_batch):
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]
            labels = ids[:, 1:].to(logits.device)
            for row_logits, row_labels in zip(logits, labels, strict=True):
                for part, wanted in zip(
                    torch.split(row_logits, _LOSS_ROWS), torch.split(row_labels, _LOSS_ROWS), strict=True
                ):
                    total += float(torch.nn.functional.cross_entropy(part.float(), wanted, reduction="sum"))
            count += labels.numel()
            progress(ids.numel())
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf
