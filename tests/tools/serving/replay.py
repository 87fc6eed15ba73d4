"""Answers made again from what they say about themselves, with transformers alone and fresh loads of the plans."""

from typing import Any

import torch

import bitstack
from bsformat import Container


def replayed(container: Container, ours: dict[str, Any], chunk: int, models: dict[int, Any] | None = None) -> list[int]:
    """The tokens that greedy decoding gives if every pass sees the blocks that the answer names for it.

    Args:
        ours: what an answer with ``return_token_ids`` says under ``bitstack``.
        chunk: tokens of a prompt in one pass.
        models: fresh loads by their number of blocks; what is missing is loaded, and stays there.
    """
    models = {} if models is None else models
    for run in ours["runs"]:
        if run["n_blocks"] not in models:
            models[run["n_blocks"]] = bitstack.load(container, run["resident_bytes"], "cpu")
            assert models[run["n_blocks"]].bitstack.plan.n_blocks == run["n_blocks"]
    # What each pass read, and with which blocks.
    prompt = ours["prompt_token_ids"]
    reads = [prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]
    by_token = [run["n_blocks"] for run in ours["runs"] for _ in range(run["completion_tokens"])]
    by_prompt = [run["n_blocks"] for run in ours["runs"] for _ in range(run["prompt_tokens"])]
    written: list[int] = []
    cache, logits = None, None
    with torch.inference_mode():
        for number, tokens in enumerate(reads):
            model = models[by_prompt[number * chunk]]
            out = model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, out.logits
        written.append(int(logits[0, -1].argmax()))
        for n_blocks in by_token[1:]:
            ids = torch.tensor([[written[-1]]])
            out = models[n_blocks](input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            written.append(int(out.logits[0, -1].argmax()))
    return written
