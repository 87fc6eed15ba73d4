"""A ``.bstk`` as a model of lm-eval, at a budget; importing this module makes it known there as ``bitstack``.

It is lm-eval's own model for transformers over what `bitstack.load` gives, so that everything behind the forward pass,
batches, truncation, chat templates, generation, is theirs.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from math import prod
from typing import Any, Final

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

import bsformat
from bsformat.errors import ModelError

from .api import Elastic, load
from .device_names import device_named
from .needs import Use
from .task import task_of

_LOG: Final = logging.getLogger(__name__)
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Arguments of lm-eval's model for transformers that mean something for a model that is loaded here.
PASSED: Final = frozenset(
    {"backend", "truncation", "logits_cache", "max_length", "softmax_dtype", "mixed_precision_dtype"}
    | {"batch_size", "max_batch_size", "add_bos_token", "prefix_token_id"}
    | {"think_end_token", "enable_thinking", "chat_template_args"}
)
#: What lm-eval says of every model that it has not loaded itself.
_ABOUT_LOADED: Final = ("`pretrained` model kwarg is not of type", "Passed an already-initialized model")


class LoadedLM(HFLM):
    """A model of transformers that is loaded already: a packed one, or a dense one to compare with.

    Args:
        model, tokenizer: as transformers has them.
        options: of lm-eval's model for transformers.
    """

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        with _without_advice():
            super().__init__(pretrained=model, tokenizer=tokenizer, **options)


@register_model("bitstack")
class BitStackLM(LoadedLM):
    """``--model bitstack --model_args uri=URI,budget=80MiB``.

    Args:
        uri: the file: a path, ``http(s)://``, ``s3://``, ``hf://``. ``pretrained``, ``path`` and ``model`` are other
            names of it, after which lm-eval names the folder of its results.
        budget: resident bytes of the weights: a number, ``80MiB``, ``60%`` of all blocks, or ``auto`` (or none).
        device: as torch names it; ``cuda…`` is the CPU where there is no GPU, since it is what lm-eval asks for unless
            told otherwise. None: CUDA if there is one.
        dtype: what the model computes in: ``float32``, ``bfloat16``, ``float16``; ``auto``: as `bitstack.load`.
        root: the root digest (64 hexadecimal digits) that the file must have.
        context: what ``auto`` leaves room for: tokens of a sequence; None: ``max_length``, or the usual of
            `bitstack.load`. It leaves room for ``batch_size`` of them, for one if that is ``auto``.
        tokenizer: another one than that of the file: a directory, a hub name, or a tokenizer of transformers.
        network, cache, storage_options: as in `bitstack.load`; ``network`` also as a mapping of what it is made of.
        options: of lm-eval's model for transformers (`PASSED`); ``trust_remote_code`` is ignored, as no code of a
            model is ever run.

    Attributes:
        elastic: the handle of the model: which file, what is resident; it resizes.

    Raises:
        ModelError: an argument that means nothing here. SourceError, FormatError, BudgetError: as `bitstack.load`.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str] | None = None,
        budget: int | float | str | None = "auto",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = "auto",
        root: str | None = None,
        context: int | None = None,
        tokenizer: Any = None,
        network: bsformat.Network | Mapping[str, Any] | None = None,
        cache: bsformat.BlockCache | bool = True,
        storage_options: Mapping[str, Any] | None = None,
        trust_remote_code: bool | None = None,
        **options: Any,
    ) -> None:
        place = _only_place(uri, options)
        unknown = sorted(set(options) - PASSED)
        if unknown:
            raise ModelError(
                f"model_args of bitstack has no {', '.join(unknown)}; it has uri, budget, device, dtype, root, "
                f"context, tokenizer, network, cache, storage_options, {', '.join(sorted(PASSED))}",
                reason="model-args",
            )
        if trust_remote_code:
            _LOG.warning("trust_remote_code is ignored: no code that comes with a model is ever run")
        batch = options.get("batch_size", 1)
        use = Use(
            context=context or options.get("max_length"),
            batch=int(batch) if str(batch).isdecimal() and int(batch) > 0 else 1,
            logits="all",
        )
        together = _processes()
        device = together.device if together else device
        model = load(
            place,
            _budget(budget),
            _device(device),
            _dtype(dtype),
            root=None if root is None else str(root).strip("'\""),
            network=_network(network),
            cache=cache,
            use=use,
            **dict(storage_options or {}),
        )
        self.elastic: Elastic = model.bitstack
        if (task := task_of(model.config)) not in ("causal", "seq2seq"):
            self.elastic.close()
            raise ModelError(f"holds a {task} model, which lm-eval cannot ask", where=str(place), reason="model-task")
        if self.elastic.auto is not None:
            _LOG.info("%s", self.elastic.auto)
        own = tokenizer is None
        super().__init__(model, self.elastic.tokenizer() if own else tokenizer, **options)
        if own:  # it was read from a folder that is gone; lm-eval keeps prompts under its name
            self.tokenizer.name_or_path = f"bitstack-{self.elastic.container.root}"
        self._device = self.elastic.device
        if together:
            self.accelerator, self._rank, self._world_size = together, together.process_index, together.num_processes

    def get_model_info(self) -> dict[str, Any]:
        """What was measured, for the results: the file by its root, and how much of it."""
        container, plan = self.elastic.container, self.elastic.plan
        return {
            "model_num_parameters": sum(prod(tensor.shape) for tensor in container.model_tensors.values()),
            "model_dtype": str(self.model.dtype),
            "model_revision": container.root,
            "model_sha": container.root,
            "bitstack_uri": container.uri,
            "bitstack_budget": plan.budget,
            "bitstack_resident_bytes": self.elastic.resident_bytes,
            "bitstack_blocks": plan.n_blocks,
            "bitstack_version": bsformat.__version__,
        }


@contextmanager
def _without_advice() -> Iterator[None]:
    log = logging.getLogger(HFLM.__module__)

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_ABOUT_LOADED)

    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)


def _only_place(uri: str | os.PathLike[str] | None, options: dict[str, Any]) -> str | os.PathLike[str]:
    """The file, by whichever of its names it was given; takes them out of ``options``."""
    names = [options.pop(name) for name in ("pretrained", "path", "model") if name in options]
    places = [place for place in (uri, *names) if place is not None]
    if len(places) != 1 or not isinstance(places[0], str | os.PathLike):
        raise ModelError("name one .bstk file in model_args: uri=model.bstk,budget=80MiB", reason="model-args")
    place: str | os.PathLike[str] = places[0]
    return place


def _budget(budget: int | float | str | None) -> int | str | None:
    """As it was meant: lm-eval turns what looks like a number into one, ``1e8`` too."""
    if isinstance(budget, bool) or (isinstance(budget, float) and not budget.is_integer()):
        raise ModelError(f"budget={budget} is no size: name bytes, 80MiB, 60% or auto", reason="model-args")
    return int(budget) if isinstance(budget, float) else budget


def _network(network: bsformat.Network | Mapping[str, Any] | None) -> bsformat.Network | None:
    if network is None or isinstance(network, bsformat.Network):
        return network
    try:
        return bsformat.Network(**network)
    except (TypeError, ValueError) as error:
        raise ModelError(f"network is an object of what bsformat.Network takes: {error}", reason="model-args") from None


def _device(device: str | torch.device | None) -> torch.device | None:
    if not device:
        return None
    if str(device).partition(":")[0] == "cuda" and not torch.cuda.is_available():
        _LOG.warning("there is no GPU that torch can use: measuring on the CPU")
        return torch.device("cpu")
    return device_named(str(device))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    kind = _DTYPES.get(str(dtype).removeprefix("torch."))
    if kind is None:
        raise ModelError(f"computes in {', '.join(_DTYPES)}, not in {dtype}: name one, or auto", reason="model-dtype")
    return kind


def _processes() -> Any:
    """The accelerator of this process where several share the questions (``accelerate launch``), else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator, InitProcessGroupKwargs

    waiting = InitProcessGroupKwargs(timeout=timedelta(weeks=52))  # as lm-eval: one may have far more to do
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[waiting])
