"""Which parameters of a model are packed, found from its modules and not from a list of architectures."""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import nn

from .probe import Fit, Prober

#: A smaller matrix costs more in factors and index than its signs save.
MIN_ELEMENTS: Final = 1 << 10
MIN_SIDE: Final = 8
#: Rows of an embedding or output head that form one chain: merge order of token ids is roughly frequency order, so
#: groups differ in worth.
EMBEDDING_GROUP_ROWS: Final = 4096

#: Dimensions of a matrix, and of a stack of them.
_MATRIX, _STACK = 2, 3

Role = Literal["linear", "embedding", "head"]


@dataclass(frozen=True, slots=True)
class Use:
    """One module that computes with a parameter.

    Attributes:
        module, attribute: where: ``attribute`` is the parameter's name in the module.
        role: how: y = x·Wᵀ, rows looked up, or logits.
        own_forward: the module does more than that, and keeps its forward when the parameter is packed.
    """

    module: str
    role: Role
    attribute: str = "weight"
    own_forward: bool = False

    @property
    def name(self) -> str:
        """The parameter's name here; tied ones have several."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter that is packed.

    Attributes:
        name: its name in the model.
        uses: the modules that it is the weight of; several where it is tied.
        rows, columns: of the matrix W in y = x·Wᵀ; of all matrices of a stack, one below the other.
        transposed: the parameter is Wᵀ (GPT-2's Conv1D), or a stack of them.
        group_rows: rows of W that form one chain; of one matrix of a stack.
        experts: matrices of a stack [experts, …], one for each expert of a mixture; 0 if the parameter is a matrix.
    """

    name: str
    uses: tuple[Use, ...]
    rows: int
    columns: int
    transposed: bool
    group_rows: int
    experts: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored: [rows, columns], or [experts, rows of each, columns]."""
        return (self.experts, self.group_rows, self.columns) if self.experts else (self.rows, self.columns)

    def matrix(self, parameter: torch.Tensor) -> torch.Tensor:
        """W [rows, columns], float32 and contiguous, of the model's parameter."""
        stored = parameter.mT if self.transposed else parameter
        return stored.float().contiguous().view(self.rows, self.columns)

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


@dataclass(frozen=True, slots=True)
class Survey:
    """What of a model is packed, in the order in which it registers its parameters.

    Attributes:
        targets: what is.
        raw: what is not although it is large enough: name of the parameter -> why, for people.
    """

    targets: list[Target]
    raw: dict[str, str]


def find_targets(model: Any) -> list[Target]:
    """The parameters to pack; see `survey`."""
    return survey(model).targets


def survey(model: Any) -> Survey:
    """Sort the parameters of a model into those to pack and those that stay as they are.

    A parameter is packed if it is floating and large enough, and every module that holds it uses it for products or
    look-ups alone: linear layers, embeddings and Conv1D, known by their forward; their subclasses and stacks of
    experts, found out by running them (`bitstack.probe`). Parameters may be on the meta device.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    prober = Prober()
    uses: dict[int, list[Use]] = {}
    why: dict[int, str] = {}
    flips: dict[int, set[bool]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            fit = _fit(module, attribute, parameter, prober)
            if isinstance(fit, str):
                why[id(parameter)] = fit
                continue
            role: Role = "head" if module is output and fit.use == "linear" else fit.use
            uses.setdefault(id(parameter), []).append(Use(path, role, attribute, not is_plain(module)))
            flips.setdefault(id(parameter), set()).add(fit.transposed)
    targets, raw = [], {}
    for name, parameter in model.named_parameters():
        key = id(parameter)
        if key not in why and flips[key] != {False} and len(uses[key]) > 1:
            why[key] = "several modules share it, and one of them takes it transposed"
        if key not in why:
            targets.append(_target(name, parameter, uses[key], flips[key] == {True}))
        elif parameter.ndim > 1 and parameter.numel() >= MIN_ELEMENTS:
            raw[name] = why[key]
    return Survey(targets, raw)


def is_plain(module: nn.Module) -> bool:
    """Whether a packed layer can take the place of a module: it does nothing but a product or a look-up."""
    return is_plain_linear(module) or is_plain_embedding(module) or is_conv1d(module)


def _target(name: str, parameter: torch.Tensor, uses: list[Use], transposed: bool) -> Target:
    size = parameter.shape[:-2] + parameter.shape[-2:][::-1] if transposed else parameter.shape
    experts = size[0] if parameter.ndim == _STACK else 0
    rows, columns = size[-2:].numel() // size[-1], size[-1]
    target = Target(name, tuple(uses), rows * max(experts, 1), columns, transposed, rows, experts)
    if not target.by_token:
        return target
    return replace(target, group_rows=min(EMBEDDING_GROUP_ROWS, rows))


def _fit(module: nn.Module, attribute: str, parameter: torch.Tensor, prober: Prober) -> Fit | str:
    """How a module uses a parameter, or why it stays raw."""
    kind = type(module).__name__
    if not parameter.is_floating_point():
        return f"its type is {parameter.dtype}"
    if parameter.ndim not in (_MATRIX, _STACK):
        return f"it has {parameter.ndim} dimensions"
    if min(parameter.shape[-2:]) < MIN_SIDE or parameter.shape[-2:].numel() < MIN_ELEMENTS:
        return f"a matrix of {parameter.shape[-2]} by {parameter.shape[-1]} is too small"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return f"{kind} scales its rows down as it looks them up (max_norm)"
    if is_plain(module):
        if attribute != "weight":
            return f"it is the {attribute} of a {kind}"
        return Fit("embedding" if is_plain_embedding(module) else "linear", is_conv1d(module))
    if parameter.ndim == _STACK or (isinstance(module, nn.Linear | nn.Embedding) and attribute == "weight"):
        return prober.fits(module)[attribute]
    return f"{kind} is no linear layer, embedding or stack of experts"
