"""A model without its weights in memory: its modules on the meta device, and its tensors on disk, by name."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bsformat.errors import ModelError

from .checkpoint import Place, attachments, load_tokenizer, locate, one_line, open_checkpoint
from .shell import meta_parameters
from .task import Task, model_class, task_of
from .weights import Weights, digest, file_tensors, weight_files
from .work import WorkFolder

#: The copy of weights that cannot be read one by one where they are.
_SPOOL = "weights.safetensors"


@dataclass(slots=True)
class Outline:
    """What is to be packed, all but its weights.

    Attributes:
        place: where it is. model: the transformers model; parameters are on the meta device, buffers that a module
            computes for itself are real.
        tokenizer: its tokenizer. files: what travels along: name -> bytes.
        dtype: what the weights are stored as.
        sources: the files that hold the weights. task: what the model does.
        names: of all distinct tensors, as the model registers them. aliases: other names of tied ones.
    """

    place: Place
    model: Any
    tokenizer: Any
    files: dict[str, bytes]
    dtype: torch.dtype
    sources: list[Path]
    task: Task = "causal"
    names: list[str] = field(init=False)
    aliases: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names, self.aliases = canonical(self.model)

    def digest(self) -> str:
        """Of the files that the weights are read from, and of the configuration that the model is built from."""
        return digest(self.sources)


def open_outline(source: str | os.PathLike[str], *, revision: str | None = None) -> Outline:
    """Build a model without weights, and read its tokenizer.

    No code that comes with a model is run: an ``auto_map`` in its configuration is ignored.

    Raises:
        ModelError: nothing there, no weights, an unknown architecture, or no tokenizer.
    """
    from transformers import AutoConfig

    place = locate(source, revision=revision)
    try:
        config = AutoConfig.from_pretrained(**place.where, trust_remote_code=False)
        stored = torch.float16 if place.gguf else config.dtype
        task: Task = "causal" if place.gguf else task_of(config)
        build: Any = model_class(task).from_config
        with meta_parameters():
            model = build(config, dtype=torch.float32, trust_remote_code=False).eval().requires_grad_(False)
        _read_generation_config(model, place)
        sources = [place.gguf] if place.gguf else weight_files(place.source)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or place.source, reason=error.reason) from None
    except Exception as error:  # the libraries behind it raise whatever they like on files they cannot read
        raise _unreadable(place, error) from None
    tokenizer = load_tokenizer(place)
    dtype = stored if stored in (torch.bfloat16, torch.float16) else torch.float32
    return Outline(place, model, tokenizer, attachments(model, tokenizer), dtype, sources, task)


def _read_generation_config(model: Any, place: Place) -> None:
    from transformers import GenerationConfig

    if model.can_generate():
        try:
            folder = place.where["pretrained_model_name_or_path"]
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError:  # there is none: the model's configuration stands in, as transformers does it
            pass


def _unreadable(place: Place, error: BaseException) -> ModelError:
    return ModelError(f"cannot be loaded as a language model: {one_line(error)}", where=place.source)


class Tensors:
    """The values of all tensors of a model, read when they are asked for.

    Args:
        work: keeps a copy of weights that cannot be read one by one: of a GGUF file, say.

    Raises:
        ModelError: the files cannot be read, or lack a tensor.
    """

    def __init__(self, outline: Outline, work: WorkFolder) -> None:
        self._outline = outline
        self._other: dict[str, list[str]] = {}
        for alias, name in outline.aliases.items():
            self._other.setdefault(name, []).append(alias)
        self._state: dict[str, torch.Tensor] = outline.model.state_dict()
        weights = None if work.has(_SPOOL) else self._direct()
        if weights is None:
            if not work.has(_SPOOL):
                _spool(outline, work)
            copied = file_tensors([work.file(_SPOOL)])
            weights = Weights(outline.model, copied, outline.place.source, renamed=False)
        self._weights = weights

    def _direct(self) -> Weights | None:
        """The files as they are, if every tensor can be read from them by itself."""
        outline = self._outline
        # What only transformers can undo, or what it finds under other names, it shall load itself.
        if outline.place.gguf or not outline.sources or getattr(outline.model.config, "quantization_config", None):
            return None
        try:
            tensors = file_tensors(outline.sources)
        except Exception as error:  # as above
            raise _unreadable(outline.place, error) from None
        try:
            weights = Weights(outline.model, tensors, outline.place.source)
        except Exception:  # rules that this version of transformers has and we do not know
            return None
        complete = all(self._find(name, weights) or not self._state[name].is_meta for name in outline.names)
        return weights if complete else None

    def _find(self, name: str, weights: Weights) -> str | None:
        return next((n for n in (name, *self._other.get(name, ())) if n in weights), None)

    def get(self, name: str) -> torch.Tensor:
        """A tensor by its first name, as it is stored, on the CPU.

        Raises:
            ModelError: it cannot be read, or has another shape than the model's.
        """
        found = self._find(name, self._weights)
        if found is None:
            return self._state[name]
        try:
            value = self._weights.get(found)
        except ModelError:
            raise
        except Exception as error:  # as above
            raise _unreadable(self._outline.place, error) from None
        if value.shape != (wanted := self._state[name].shape):
            raise ModelError(
                f"cannot be loaded as a language model: {name} has shape {list(value.shape)}, its configuration "
                f"says {list(wanted)}",
                where=self._outline.place.source,
            )
        return value

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of them, one by one."""
        for name in self._outline.names:
            yield name, self.get(name)


def _spool(outline: Outline, work: WorkFolder) -> None:
    """Let transformers load the whole model, and keep it as one file that is read tensor by tensor."""
    state = open_checkpoint(outline.place.source).model.state_dict()
    work.save(_SPOOL, {name: state[name] for name in outline.names})


def canonical(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """The names of all distinct tensors of a model, and the other names of those that are tied."""
    first: dict[int, str] = {}
    names, aliases = [], {}
    objects = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, value in model.state_dict().items():
        key = id(objects.get(name, value))
        if key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            names.append(name)
    return names, aliases
