"""``bstk generate``."""

import argparse
import time
from typing import TYPE_CHECKING, Any

import bsformat
from bsformat import BstkError, Container
from bsformat.errors import ModelError

from .console import exact_size, print_json, quiet_libraries, say
from .governing import check_bounds, governed, is_governed
from .loading import check_budgets, load_as_asked
from .options import source_options

if TYPE_CHECKING:
    from bitstack import Use


def run(args: argparse.Namespace) -> int:
    """Load within the budget and print the text, and nothing else."""
    with bsformat.open(args.uri, root=args.root, **source_options(args)) as container:
        check_budgets(container, [args.budget])
        check_bounds(container, args)
        import bitstack

        quiet_libraries()  # the tokenizer may be the first that is asked for
        started = time.monotonic()
        model, auto = load_as_asked(container, args, intended(container, args))
        if model.config.is_encoder_decoder or not model.can_generate():
            raise ModelError(
                f"is a {type(model).__name__}, which continues no prompt; bitstack.load gives it to a program",
                where=container.uri,
                reason="model-task",
            )
        tokenizer = bitstack.load_tokenizer(container)
        loaded = time.monotonic()
        with governed(model, args) as decisions:
            text, tokens = complete(
                model,
                tokenizer,
                args.prompt,
                args.max_new_tokens,
                raw=args.raw,
                temperature=args.temperature,
                seed=args.seed,
            )
        finished = time.monotonic()
        grown = ended_growth(model.bitstack) if args.progressive else {}
        if args.json:
            print_json(
                {
                    "text": text,
                    "file": container.uri,
                    "root": container.root,
                    "budget": args.budget,
                    "budget_bytes": model.bitstack.plan.budget,
                    "auto": auto.to_json() if auto else None,
                    "governor": decisions,
                    "resident_bytes": model.bitstack.resident_bytes,
                    "n_blocks": model.bitstack.plan.n_blocks,
                    "bytes_read": container.source.bytes_read,
                    "bytes_cached": container.bytes_cached,
                    "requests": container.source.requests,
                    "tokens": tokens,
                    "load_seconds": round(loaded - started, 3),
                    "seconds": round(finished - loaded, 3),
                }
                | grown
            )
        else:
            print(text)
    return 0


def ended_growth(elastic: Any) -> dict[str, Any]:
    """End the growth of a model in the background, and say on stderr from what to what it came."""
    growth = elastic.growth
    now, widening = growth.cancel(), elastic.widening
    began, target = growth.started, growth.target
    say(
        f"bstk: began with {exact_size(began.resident_bytes + widening)}, {began.n_blocks} blocks; "
        f"ended with {exact_size(now.resident_bytes + widening)}, {now.n_blocks} of {target.n_blocks} blocks"
    )
    failed = growth.error is not None and growth.error.reason != "resize-cancelled"
    return {
        "progressive": {
            "began_with_bytes": began.resident_bytes + widening,
            "began_with_blocks": began.n_blocks,
            "target_blocks": target.n_blocks,
            "error": str(growth.error) if failed else None,
        }
    }


def intended(container: Container, args: argparse.Namespace) -> "Use":
    """What ``auto`` leaves room for: this prompt and its answer, or a longer context if one is stated."""
    import bitstack

    if args.budget != "auto" and not is_governed(args):
        return bitstack.Use()
    prompt = prompt_inputs(bitstack.load_tokenizer(container), args.prompt, args.raw)["input_ids"].shape[1]
    return bitstack.Use(max(prompt + args.max_new_tokens, args.context or 1), prompt=max(1, prompt))


def complete(
    model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, *, raw: bool, temperature: float, seed: int
) -> tuple[str, int]:
    """Continue a prompt, or answer it where the tokenizer has a chat template and ``raw`` is not set.

    Returns:
        The new text, and how many tokens it has.

    Raises:
        ModelError: the prompt has no tokens, or more than the model can read, or the chat template fails.
    """
    import torch

    from bitstack.reach import readable_tokens

    inputs = prompt_inputs(tokenizer, prompt, raw).to(model.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise ModelError("the prompt has no tokens; write something", reason="prompt")
    most = readable_tokens(model.config)
    if most is not None and length >= most:
        raise ModelError(
            f"the prompt has {length} tokens; this model reads {most}, its answer included: shorten it", reason="prompt"
        )
    room = max_new_tokens if most is None else min(max_new_tokens, most - length)
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    # What the model's generation_config.json says about sampling does not hold for greedy decoding.
    sampling |= {"temperature": temperature if temperature > 0 else None}
    if temperature == 0:
        sampling |= {"top_p": None, "top_k": None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    torch.manual_seed(seed)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=room, pad_token_id=pad, **sampling)
    new = out[0, length:]
    if len(new) == room < max_new_tokens:
        say(f"bstk: the text ends here: with its prompt it has the {most} tokens that this model can read")
    return tokenizer.decode(new, skip_special_tokens=True), len(new)


def prompt_inputs(tokenizer: Any, prompt: str, raw: bool) -> Any:
    """What a model takes for a prompt: ``input_ids`` and mask [1, tokens], through the chat template if there is one.

    Raises:
        ModelError: the prompt has no tokens, or the chat template fails.
    """
    if raw or not getattr(tokenizer, "chat_template", None):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        if not inputs["input_ids"].is_floating_point():
            return inputs
        raise ModelError("the prompt has no tokens; write something", reason="prompt")
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except BstkError:
        raise
    except Exception as error:  # a template is a program of the model's author: it may fail in any way
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"its chat template fails ({detail}); --raw goes without it", reason="chat-template") from None
