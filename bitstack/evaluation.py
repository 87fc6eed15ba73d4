"""Perplexity of a language model on windows of text."""

import math
from collections.abc import Callable
from typing import Any

import torch

from bsformat.errors import ModelError

from .task import METRICS
from .text import Windows

#: Positions whose logits are turned into losses at once.
_LOSS_ROWS = 256
#: Tokens that go through the model at once.
BATCH_TOKENS = 2048


def perplexity(
    model: Any,
    windows: Windows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], object] = lambda n: None,
) -> float:
    """exp of the mean negative log-likelihood of every label: of every token but the first of its window, or of what
    a masked language model is asked for; windows stand alone.

    Args:
        batch_tokens: tokens that go through the model at once.
        progress: called with the number of tokens done since the last call.

    Raises:
        ModelError: the model is an encoder without a head.
    """
    if windows.task not in METRICS:
        raise ModelError(f"is a {type(model).__name__}, which says nothing about a text", reason="model-task")
    total, count = 0.0, 0
    with torch.inference_mode():
        for inputs, labels in windows.batches(batch_tokens):
            inputs = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            logits = model(**inputs).logits
            labels = labels.to(logits.device)
            for row_logits, row_labels in zip(logits, labels, strict=True):
                for part, wanted in zip(
                    torch.split(row_logits, _LOSS_ROWS), torch.split(row_labels, _LOSS_ROWS), strict=True
                ):
                    total += float(torch.nn.functional.cross_entropy(part.float(), wanted, reduction="sum"))
            count += int((labels != -100).sum())
            progress(inputs["input_ids"].numel())
    mean = total / max(count, 1)
    return math.exp(mean) if mean < 700 else math.inf
