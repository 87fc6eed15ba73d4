"""Texts as windows of tokens: from a file, or written by the model itself."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bsformat.errors import ModelError


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows of one text.

    Attributes:
        name: which text, for people and for the file's record.
        ids: int64 [number of windows, tokens a window]; each window stands alone.
        task: what a model is to do with them (`bitstack.task`).
        labels: int64 [number of windows, positions], what it is to say at each position, -100 for nothing; None: the
            next token.
        decoder_ids: int64, of the shape of ``labels``: what a decoder is given, where the model has one of its own.
    """

    name: str
    ids: torch.Tensor
    task: str = "causal"
    labels: torch.Tensor | None = None
    decoder_ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, tokens: int) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """Arguments of a model and the labels of its logits, for as many windows as have about so many tokens."""
        size = max(1, tokens // self.ids.shape[1])
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            inputs: dict[str, Any] = {"input_ids": self.ids[part]}
            if self.decoder_ids is not None:
                inputs["decoder_input_ids"] = self.decoder_ids[part]
            if self.task in ("causal", "seq2seq"):
                inputs["use_cache"] = False
            if self.labels is not None:
                yield inputs, self.labels[part]
            else:
                # The last position has no label; ignoring it costs less than cutting the logits, which are large.
                yield inputs, torch.nn.functional.pad(self.ids[part, 1:], (0, 1), value=-100)


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file.

    Raises:
        ModelError: it cannot be read, or is not UTF-8.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        detail = getattr(error, "strerror", None) or "not UTF-8"
        raise ModelError(f"no text that can be read ({detail})", where=name, reason="text") from None


def file_windows(
    tokenizer: Any, path: str | os.PathLike[str], window: int, count: int | None = None, *, spread: bool = False
) -> Windows:
    """The first ``count`` windows of ``window`` tokens of a text file, or ``count`` windows spread over it.

    Raises:
        ModelError: the file cannot be read, or is shorter than one window.
    """
    name = os.fspath(path)
    ids = tokenizer(read_text(path), return_tensors="pt", add_special_tokens=False, verbose=False).input_ids[0]
    whole = len(ids) // window
    if whole == 0:
        raise ModelError(f"has {len(ids)} tokens, fewer than one window of {window}", where=name, reason="text")
    chosen = torch.arange(min(whole, count or whole))
    if spread and count is not None and count < whole:
        chosen = chosen * whole // count
    return Windows(os.path.basename(name), ids[: whole * window].view(whole, window)[chosen].clone())


def self_windows(
    model: Any, tokenizer: Any, window: int, count: int, *, seed: int, progress: Callable[[int], object]
) -> Windows:
    """Text that the model writes itself, sampled at temperature 1, each window from a random first token.

    Packing so needs no data: the text has the distribution of what the model is used to produce.

    Args:
        progress: called with the number of tokens done since the last call, the first ones included.

    Raises:
        ModelError: the model's logits are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    first = torch.randint(
        0, min(len(tokenizer), model.config.get_text_config().vocab_size), (count, 1), generator=generator
    )
    prefix = [] if start is None else [torch.full((count, 1), start)]
    ids = torch.cat([*prefix, first], 1)[:, :window]
    progress(ids.numel())
    cache = None
    fed = ids
    with torch.inference_mode():
        while ids.shape[1] < window:
            out = model(input_ids=fed.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            probabilities = torch.softmax(out.logits[:, -1].float().cpu(), -1)
            if not torch.isfinite(probabilities).all():
                raise ModelError("computes logits that are NaN or infinite", reason="model-values")
            fed = torch.multinomial(probabilities, 1, generator=generator)
            ids = torch.cat([ids, fed], 1)
            progress(count)
    return Windows("self", ids)
