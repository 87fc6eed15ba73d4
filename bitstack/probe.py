"""How a module uses its weights, found out by running it twice: with a dense random weight, and with the same packed.

Only what gives the same answer both ways, through products or look-ups alone, is packed.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn

from bitstack import kernels
from bsformat import Form, Tensor

from .layers import BitStackParameter
from .packed import PackedTensor

Use = Literal["linear", "embedding"]

#: Rows of the random weight that are not zero, at the start, or matrices of a stack: zeros cost no memory.
_ROWS: Final = 64
#: Largest difference of the two answers, relative to the larger of them: float32 sums in another order.
_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Fit:
    """A parameter that can be packed.

    Attributes:
        use: what is computed with it: y = x·Wᵀ, or rows looked up.
        transposed: the parameter is Wᵀ, or a stack of them.
    """

    use: Use
    transposed: bool


class Prober:
    """Probes modules; the answer is kept for others of the same class and shapes."""

    def __init__(self) -> None:
        self._known: dict[Any, dict[str, Fit | str]] = {}

    def fits(self, module: nn.Module) -> dict[str, Fit | str]:
        """For each parameter that could be packed how it fits, or why it does not."""
        shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
        key = (type(module), shapes)
        if key not in self._known:
            self._known[key] = _fits(module)
        return self._known[key]


def use_eager_experts(module: nn.Module) -> str | None:
    """Make a module of experts take its matrices one at a time, as transformers' plain implementation does.

    Returns:
        What it used before; None if it has no such choice.
    """
    config = getattr(module, "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is not None and before != "eager":
        config._experts_implementation = "eager"  # type: ignore[union-attr]
    return before


def _fits(module: nn.Module) -> dict[str, Fit | str]:
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.Linear | nn.Embedding):
        names = [name for name in own if name == "weight"]
    else:
        names = [name for name, value in own.items() if value.ndim == 3]
    stays = f"{type(module).__name__} does more with it than a product or a look-up"
    # The parameter's orientation shows in the use; a guess is right for all parameters of a module, or for none.
    for transposed in (False, True):
        with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            uses = _try(module, {name: own[name] for name in names}, transposed)
        if uses is not None:
            return {name: Fit(use, transposed) for name, use in uses.items()}
    return dict.fromkeys(names, stays)


def _try(module: nn.Module, own: dict[str, nn.Parameter], transposed: bool) -> dict[str, Use] | None:
    """The uses of the parameters, if the module computes the same with a dense and a packed weight."""
    try:
        packed = {name: _random(name, tuple(value.shape), transposed) for name, value in own.items()}
        dense = _twin(module, without=frozenset(own))
        swapped = copy.deepcopy(dense)
        logs = {}
        for name, item in packed.items():
            dense._parameters[name] = nn.Parameter(_dense(item, tuple(own[name].shape)), requires_grad=False)
            parameter = _Logged(item)
            parameter.install(swapped, name)
            logs[name] = parameter.log
    except Exception:  # a module that cannot be copied or seen so is left alone
        return None
    agreed = 0
    for args in _inputs(module, own):
        try:
            wanted = dense(*args)
        except Exception:  # these are not the arguments it takes
            continue
        if not isinstance(wanted, torch.Tensor):
            return None
        try:
            got = swapped(*args)
        except Exception:  # what the module does with its weight, a stand-in cannot
            return None
        if got.shape != wanted.shape or got.dtype != wanted.dtype or not bool(wanted.any()):
            return None
        if not float((got - wanted).abs().max()) <= _TOLERANCE * float(wanted.abs().max()):  # refuses NaN, too
            return None
        agreed += 1
    if not agreed or any(len(log) != 1 for log in logs.values()):
        return None
    return {name: "linear" if "linear" in log else "embedding" for name, log in logs.items()}


def _inputs(module: nn.Module, own: dict[str, nn.Parameter]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Arguments that such a module may take; at least one must suit it."""
    if isinstance(module, nn.Embedding):
        yield (torch.tensor([[3, 1, 4, 1, 5, 2]]),)
        yield (torch.ones(1, 6, dtype=torch.int64),)  # a mask, where positions are counted from it
    elif isinstance(module, nn.Linear):
        yield (torch.randn(2, 3, module.in_features),)
    else:  # experts of transformers 5: hidden states, which experts for each token, and with what weights
        experts = min(len(p) for p in own.values())
        chosen = torch.tensor([[0, experts - 1], [min(1, experts - 1), 0], [0, experts - 1]])
        for width in sorted({size for p in own.values() for size in p.shape[1:]}):
            yield torch.randn(3, width), chosen, torch.rand(3, 2)
            yield (torch.randn(3 * experts, width),)  # or as many for each, sorted


def _random(name: str, shape: tuple[int, ...], transposed: bool) -> PackedTensor:
    """A packed tensor whose first rows, or first and last matrices of a stack, are random, and all else zero."""
    stored = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
    rows, columns = stored[-2:]
    group = rows if len(shape) == 3 else min(rows, _ROWS)
    packed = PackedTensor(Tensor(name, stored, "F32", group, 0, 1, transposed))
    total = packed.tensor.rows
    packed.set_scales(torch.rand(total).half() + 0.5, torch.rand(columns).half() + 0.5)
    for chain in _filled(packed):
        size = kernels.payload_bytes(group, columns, 1, "F16")
        factors = torch.randn(group + columns).half().view(torch.uint8)
        signs = torch.randint(0, 256, (size - len(factors),), dtype=torch.uint8)
        packed.push(chain, Form("sign", rank=1, factors="F16"), torch.cat([signs, factors]))
    return packed


def _filled(packed: PackedTensor) -> Iterable[int]:
    return sorted({0, min(1, packed.tensor.n_chains - 1), packed.tensor.n_chains - 1}) if _is_stack(packed) else [0]


def _is_stack(packed: PackedTensor) -> bool:
    return len(packed.tensor.shape) == 3


def _dense(packed: PackedTensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The same as `PackedTensor.dense`, but what is zero is never written, and so takes no memory."""
    tensor = packed.tensor
    matrix = torch.zeros(tensor.rows, tensor.columns)
    for chain in _filled(packed):
        start = chain * tensor.group_rows
        matrix[start : start + tensor.group_rows] = packed.matrix(group=chain)
    parameter = matrix.view(tensor.shape)
    return parameter.mT if tensor.transposed else parameter


class _Logged(BitStackParameter):
    """Notes what is asked of it, and gives no matrix away."""

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__(_LoggedTensor(packed), torch.float32)  # type: ignore[arg-type]

    @property
    def log(self) -> set[str]:
        return self.packed.log  # type: ignore[attr-defined, no-any-return]


class _LoggedTensor:
    def __init__(self, packed: PackedTensor) -> None:
        self._packed, self.log = packed, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._packed, name)

    def linear(self, *args: Any) -> torch.Tensor:
        self.log.add("linear")
        return self._packed.linear(*args)

    def rows(self, *args: Any) -> torch.Tensor:
        self.log.add("rows")
        return self._packed.rows(*args)

    def matrix(self, *args: Any) -> torch.Tensor:
        raise RuntimeError("the whole matrix is asked for")


def _twin(module: nn.Module, without: frozenset[str] = frozenset()) -> nn.Module:
    """A copy of a module on the CPU in float32, with random values where the original has parameters."""
    twin = copy.copy(module)
    state = vars(twin)
    state["_parameters"] = {
        name: p if p is None else nn.Parameter(torch.rand(p.shape), requires_grad=False)
        for name, p in module._parameters.items()
        if name not in without
    }
    state["_buffers"] = {name: _real(b) for name, b in module._buffers.items()}
    state["_modules"] = {name: m if m is None else _twin(m) for name, m in module._modules.items()}
    for hooks in [name for name in state if name.endswith("_hooks") and isinstance(state[name], dict)]:
        state[hooks] = type(state[hooks])()
    if "config" in state:
        twin.config = copy.deepcopy(module.config)
    use_eager_experts(twin)
    return twin.eval()


def _real(buffer: torch.Tensor | None) -> torch.Tensor | None:
    if buffer is None:
        return None
    if buffer.is_meta:
        return torch.rand(buffer.shape) if buffer.is_floating_point() else torch.ones(buffer.shape, dtype=buffer.dtype)
    return buffer.float() if buffer.is_floating_point() else buffer.clone()
