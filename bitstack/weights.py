"""The weights of a model on disk, read one by one and only when they are asked for.

Names in files need not be names in the model: transformers renames, joins and splits tensors while it loads. The same
rules are followed here, group by group, so that a mixture of experts too is never in memory whole.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from bsformat.errors import ModelError

#: Where the weights of a model directory are, in the order in which transformers looks.
_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

Reader = Callable[[], torch.Tensor]


@dataclass(slots=True)
class _Group:
    """Tensors of the files that become one or several tensors of the model."""

    name: str  # of the first tensor that it becomes
    converter: Any  # transformers' WeightConverter, or None: one tensor, as it is
    sources: list[tuple[str, str]] = field(default_factory=list)  # name in the files, pattern that it matched


class Weights:
    """Tensors by their names in the model.

    Args:
        model: the model that they belong to, on the meta device.
        tensors: what the files hold: name -> function that reads it.
        where: what they come from, for people.
        renamed: the files may have other names than the model, and other tensors, as transformers knows.
    """

    def __init__(self, model: Any, tensors: Mapping[str, Reader], where: str, *, renamed: bool = True) -> None:
        self._model, self._tensors, self._where = model, tensors, where
        self._groups = _plan(model, tensors) if renamed else {n: _Group(n, None, [(n, n)]) for n in tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._groups

    def get(self, name: str) -> torch.Tensor:
        """A tensor of the model as it is stored: on the CPU, in the type of the files."""
        group = self._groups[name]
        if group.converter is None:
            return self._tensors[group.sources[0][0]]()
        converter = deepcopy(group.converter)
        for source, pattern in group.sources:
            converter.add_tensor(group.name, source, pattern, self._tensors[source])
        made = converter.convert(group.name, model=self._model, config=self._model.config)
        if name not in made:
            raise ModelError(
                f"its tensors {group.sources[0][0]!r}, … do not make {name!r}", where=self._where, reason="model"
            )
        value: torch.Tensor | list[torch.Tensor] = made[name]
        return value[0] if isinstance(value, list) else value


def _plan(model: Any, names: Iterable[str]) -> dict[str, _Group]:
    """Which tensors of the files make each tensor of the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state = model.state_dict()
    groups: dict[str, _Group] = {}
    prefix = model.base_model_prefix
    for source in sorted(names, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, prefix, state)
        if name not in state and source in state:
            name, pattern = rename_source_key(source, [], [], prefix, state)
        if name not in state:
            continue  # not every file holds only what the model needs
        converter = by_pattern[pattern] if pattern is not None else None
        group = groups.setdefault(name, _Group(name, converter))
        group.sources.append((source, pattern or source))
        if converter is not None:  # one source may be split into several tensors
            for other in converter.target_patterns[1:]:
                groups.setdefault(name.replace(converter.target_patterns[0], other), group)
    return groups


def weight_files(source: str) -> list[Path]:
    """The files that hold the weights of a model directory or hub id; none where they have unusual names."""
    from transformers.utils import hub

    shards_of: Any = hub.get_checkpoint_shard_files
    for name in _FILES:
        found = hub.cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        if not name.endswith(".index.json"):
            return [Path(found)]
        shards, _ = shards_of(source, found)
        return [Path(found), *map(Path, shards)]
    return []


def file_tensors(files: Iterable[Path]) -> dict[str, Reader]:
    """What weight files hold. A tensor of a safetensors file is mapped when it is read, and let go with it.

    Raises:
        Exception: whatever the libraries raise on files that are damaged.
    """
    tensors: dict[str, Reader] = {}
    for path in files:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                tensors |= {name: _Mapped(path, name) for name in file.keys()}  # noqa: SIM118
        elif path.suffix == ".bin":
            held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            tensors |= {name: _Held(value) for name, value in held.items()}
    return tensors


@dataclass(frozen=True, slots=True)
class _Mapped:
    path: Path
    name: str

    def __call__(self) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            value: torch.Tensor = file.get_tensor(self.name)
            return value


@dataclass(frozen=True, slots=True)
class _Held:
    value: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return self.value


def digest(files: Iterable[Path]) -> str:
    """BLAKE3 over names and contents of files."""
    import blake3

    total = blake3.blake3()
    for path in files:
        one = blake3.blake3(max_threads=blake3.blake3.AUTO)
        one.update_mmap(path)
        total.update(json.dumps([path.name, os.path.getsize(path)]).encode() + one.digest())
    return total.hexdigest()
