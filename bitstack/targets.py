"""Which parameters of a model are packed, found from its modules and not from a list of architectures."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

#: A smaller matrix costs more in factors and index than its signs save.
MIN_ELEMENTS: Final = 1 << 10
MIN_SIDE: Final = 8
#: Rows of an embedding or output head that form one chain: merge order of token ids is roughly frequency order, so
#: groups differ in worth.
EMBEDDING_GROUP_ROWS: Final = 4096

Role = Literal["linear", "embedding", "head"]


@dataclass(frozen=True, slots=True)
class Use:
    """One module that uses a parameter as its weight; ``role`` says how: y = x·Wᵀ, rows looked up, or logits."""

    module: str
    role: Role


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter that is packed.

    Attributes:
        name: its name in the model.
        uses: the modules that it is the weight of; several where it is tied.
        rows, columns: of the matrix W in y = x·Wᵀ.
        transposed: the parameter is Wᵀ (GPT-2's Conv1D).
        group_rows: rows of W that form one chain.
    """

    name: str
    uses: tuple[Use, ...]
    rows: int
    columns: int
    transposed: bool
    group_rows: int

    @property
    def by_token(self) -> bool:
        """Whether rows stand for token ids: an embedding, an output head, or both at once."""
        return any(use.role != "linear" for use in self.uses)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: y = x·W + b."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes x·Wᵀ + b and nothing else; a subclass may add something to that."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def is_plain_embedding(module: nn.Module) -> bool:
    """Whether a module looks up rows and does nothing else."""
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward and module.max_norm is None


def find_targets(model: Any) -> list[Target]:
    """The parameters to pack, in the order in which the model registers them.

    A parameter is packed if every module that holds it uses it as the weight of a plain linear layer, embedding or
    Conv1D, and it is floating and large enough. All else stays raw.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    uses: dict[int, list[Use]] = {}
    blocked: set[int] = set()
    transposed: set[int] = set()
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            role = _role(module, attribute, module is output)
            if role is None:
                blocked.add(id(parameter))
            else:
                uses.setdefault(id(parameter), []).append(Use(path, role))
                if is_conv1d(module):
                    transposed.add(id(parameter))
    targets = []
    for name, parameter in model.named_parameters():
        key = id(parameter)
        if key in blocked or key not in uses or not _worth_packing(parameter):
            continue
        flip = key in transposed
        if flip and len(uses[key]) > 1:
            continue
        rows, columns = parameter.shape[::-1] if flip else parameter.shape
        by_token = any(use.role != "linear" for use in uses[key])
        group = min(EMBEDDING_GROUP_ROWS, rows) if by_token else rows
        targets.append(Target(name, tuple(uses[key]), rows, columns, flip, group))
    return targets


def _role(module: nn.Module, attribute: str, is_output: bool) -> Role | None:
    if attribute != "weight":
        return None
    if is_plain_embedding(module):
        return "embedding"
    if is_plain_linear(module):
        return "head" if is_output else "linear"
    return "linear" if is_conv1d(module) else None


def _worth_packing(parameter: torch.Tensor) -> bool:
    return (
        parameter.is_floating_point()
        and parameter.ndim == 2
        and min(parameter.shape) >= MIN_SIDE
        and parameter.numel() >= MIN_ELEMENTS
    )
