"""What a model was made to do, which decides the class that it is built as and the loss that it is measured with."""

from typing import Any, Final, Literal

import torch

from bsformat.errors import ModelError

from .text import Windows

Task = Literal["causal", "masked", "seq2seq", "features"]

#: The name of the measure on held-out text; none where a model says nothing about text.
METRICS: Final[dict[str, str]] = {
    "causal": "perplexity",
    "masked": "masked-perplexity",
    "seq2seq": "continuation-perplexity",
}
#: Share of the tokens that are hidden from a masked language model (BERT, arXiv 1810.04805, section 3.1).
MASKED_SHARE: Final = 0.15
#: Positions without a label, as torch's cross-entropy has it.
_NO_LABEL: Final = -100


def task_of(config: Any) -> Task:
    """The task of a model, from the class that its configuration names, else from its type.

    Raises:
        ModelError: reason ``model-task``: transformers has neither a language model nor an encoder of that name.
    """
    from transformers.models.auto import modeling_auto as auto

    by_task: dict[Task, Any] = {
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        # Before masked ones, among which transformers counts some of these.
        "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "features": auto.MODEL_MAPPING_NAMES,
    }
    kind = config.model_type
    text = [task for task, names in by_task.items() if kind in names and task != "features"]
    if not text:  # a model of images or sound
        by_task.pop("features")
    named = [name for name in config.architectures or () if isinstance(name, str)]
    for task, names in by_task.items():
        known = names.get(kind, ())
        if any(name in ((known,) if isinstance(known, str) else known) for name in named):
            return task
    # A class of another name (a wrapper of several models, say) may still hold the weights of one of these.
    if kind in by_task["causal"]:
        return "causal"
    if not named and text:
        return text[0]
    raise ModelError(
        f"is a {named[0] if named else kind!r}; what can be packed are language models (causal, masked, or from "
        "sequence to sequence) and encoders without a head",
        reason="model-task",
    )


def model_class(task: Task) -> Any:
    """The class of transformers that opens and builds models for a task."""
    import transformers

    names = {"causal": "ForCausalLM", "masked": "ForMaskedLM", "seq2seq": "ForSeq2SeqLM", "features": ""}
    return getattr(transformers, f"AutoModel{names[task]}")


def prepare(windows: Windows, task: Task, model: Any, tokenizer: Any, seed: int) -> Windows:
    """Windows of plain text as a model for the task takes them, with what it is to say about them.

    Raises:
        ModelError: a masked language model whose tokenizer has no mask.
    """
    if task == "masked":
        return _masked(windows, tokenizer, seed)
    if task == "seq2seq":  # the second half of a window continues the first
        half = windows.ids.shape[1] // 2
        source, wanted = windows.ids[:, :half].clone(), windows.ids[:, half:].clone()
        first = model.config.decoder_start_token_id
        start = torch.full((len(wanted), 1), first if first is not None else model.config.pad_token_id or 0)
        return Windows(windows.name, source, task, wanted, torch.cat([start, wanted[:, :-1]], 1))
    return Windows(windows.name, windows.ids, task)


def _masked(windows: Windows, tokenizer: Any, seed: int) -> Windows:
    """Hides tokens: of those chosen, four fifths become the mask, a tenth some other token, a tenth stay."""
    if tokenizer.mask_token_id is None:
        raise ModelError("is a masked language model, but its tokenizer has no mask token", reason="model-task")
    generator = torch.Generator().manual_seed(seed)
    ids = windows.ids.clone()
    chosen = torch.rand(ids.shape, generator=generator) < MASKED_SHARE
    for column, special in ((0, tokenizer.cls_token_id), (-1, tokenizer.sep_token_id)):
        if special is not None:  # as it was trained: every text begins and ends so
            ids[:, column] = special
            chosen[:, column] = False
    labels = torch.where(chosen, ids, _NO_LABEL)
    how = torch.rand(ids.shape, generator=generator)
    others = torch.randint(0, len(tokenizer), ids.shape, generator=generator)
    ids = torch.where(chosen & (how < 0.8), tokenizer.mask_token_id, ids)
    ids = torch.where(chosen & (how >= 0.9), others, ids)
    return Windows(windows.name, ids, "masked", labels)
