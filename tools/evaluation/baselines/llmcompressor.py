"""GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) through the library ``llmcompressor``.

Both quantise the linear layers only, asymmetrically and in groups along each row; embeddings and heads are rounded to
nearest where they are to be quantised. GPTQ calibrates each layer on the outputs of the quantised layers before it.
"""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bitstack.checkpoint import clean_config
from bitstack.targets import Target
from bitstack.tools.evaluation.quiet import hushed

from .base import BaselineError, Settings, Subject
from .libraries import need
from .rtn import Rtn


class _Library(ABC):
    """What both have in common.

    Attributes:
        calibrated: both look at the calibration text.
    """

    calibrated = True

    def check(self) -> dict[str, str]:
        """See `Baseline.check`."""
        return need("llmcompressor", extra="llmcompressor") | need("compressed_tensors", extra="llmcompressor")

    def quantise_linear(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Baseline.quantise_linear`."""
        for target in subject.linear:
            _check_target(target, settings.group_size)
        with hushed(), TemporaryDirectory() as folder:
            changed = self._compress(subject, settings, folder)
        yield from changed.items()

    def quantise_token(self, subject: Subject, settings: Settings) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Baseline.quantise_token`."""
        return Rtn().quantise_token(subject, settings)

    def size(self, target: Target, settings: Settings) -> int:
        """See `Baseline.size`."""
        return Rtn().size(target, settings)

    def _compress(self, subject: Subject, settings: Settings, folder: str) -> dict[str, torch.Tensor]:
        # Read when the library is first imported; it logs every layer to stderr otherwise.
        os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from llmcompressor import oneshot

        names = [use.module for target in subject.linear for use in target.uses]
        arguments = QuantizationArgs(
            num_bits=settings.bits, type="int", symmetric=False, strategy="group", group_size=settings.group_size
        )
        groups = {"linear": QuantizationScheme(targets=names, weights=arguments)}
        model = copy.deepcopy(subject.model)
        # The library refuses what a GGUF file says of its own storage, though the weights are dense by now.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        # It also reads the configuration of the folder that a model says it came from.
        Path(folder, "config.json").write_bytes(clean_config(model.config.to_dict()))
        model.name_or_path = model.config._name_or_path = folder
        with _unpinned():
            oneshot(
                model=model,
                dataset=torch.utils.data.DataLoader(_Windows(subject.calibration.windows.ids), batch_size=None),
                recipe=self._modifiers(groups),
                pipeline="sequential",
                processor=subject.tokenizer,
                clear_sparse_session=True,
            )
        return _changes(subject, model, names, arguments)

    @abstractmethod
    def _modifiers(self, groups: dict[str, Any]) -> list[Any]:
        """What the library is to do with these groups of layers."""


@dataclass(frozen=True, slots=True)
class Gptq(_Library):
    """With the library's defaults: damping 0.01, columns in the order of their activations, no index to store."""

    name: str = "gptq"

    def _modifiers(self, groups: dict[str, Any]) -> list[Any]:
        from llmcompressor.modifiers.quantization import GPTQModifier

        return [GPTQModifier(config_groups=groups)]


@dataclass(frozen=True, slots=True)
class Awq(_Library):
    """With the library's defaults: scales searched on a grid of 20, weights and activations both looked at."""

    name: str = "awq"

    def _modifiers(self, groups: dict[str, Any]) -> list[Any]:
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        return [AWQModifier(), QuantizationModifier(config_groups=groups)]


class _Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """One window a batch."""

    def __init__(self, ids: torch.Tensor) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self._ids[index : index + 1]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _check_target(target: Target, group_size: int) -> None:
    if target.transposed:
        raise BaselineError("llmcompressor quantises nn.Linear only, not Conv1D", where=target.name)
    if target.columns % group_size:
        raise BaselineError(
            f"llmcompressor takes whole groups only, and {target.columns} columns are no multiple of {group_size}; "
            "choose another --group-size",
            where=target.name,
        )


def _changes(subject: Subject, model: Any, names: list[str], arguments: Any) -> dict[str, torch.Tensor]:
    """What differs from the original: quantised weights, and what AWQ scaled to make up for it."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    changed = {}
    with torch.no_grad():
        for name in names:
            module = model.get_submodule(name)
            weight, scale, zero = (
                tensor.detach().cpu() for tensor in (module.weight, module.weight_scale, module.weight_zero_point)
            )
            scale = scale.half().float()  # as it would be stored
            changed[f"{name}.weight"] = fake_quantize(weight.float(), scale, zero, arguments)
        for name, original in subject.model.named_parameters():
            if name not in changed:
                value = model.get_parameter(name).detach().cpu().float()
                if not torch.equal(value, original):
                    changed[name] = value.half().float()
    return changed


@contextmanager
def _unpinned() -> Iterator[None]:
    """Let AWQ run where there is no accelerator: llmcompressor 0.14 pins memory there too, which torch refuses.

    Pinning only makes copies to an accelerator faster.
    """
    if torch.accelerator.is_available():
        yield
        return
    cache = import_module("llmcompressor.pipelines.cache").IntermediatesCache
    pin = cache.pin_memory
    cache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        cache.pin_memory = pin
