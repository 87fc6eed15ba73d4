"""Statistics of experts and of modules with a forward of their own, and of a model that is run in parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bitstack.calibrate import calibrate
from bitstack.collect import EXPERT_FLOOR, Collector, Statistics
from bitstack.targets import find_targets
from bitstack.text import Windows

TOKENS = 48


@pytest.fixture(scope="module")
def windows() -> Windows:
    ids = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))
    return Windows("random", ids)


class _Products(TorchFunctionMode):
    """Notes every product with a matrix that lies in one of the given parameters, told by its address."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.parameters = parameters
        self.inputs: dict[tuple[str, int], list[torch.Tensor]] = {}
        self.gradients: dict[tuple[str, int], list[torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (functional.linear, torch.Tensor.matmul, torch.bmm):
            for name, parameter in self.parameters.items():
                offset = (args[1].data_ptr() - parameter.data_ptr()) // parameter.itemsize
                if 0 <= offset < parameter.numel():
                    self._note(name, offset // parameter[0].numel(), args[0], out, func is torch.bmm)
        return out

    def _note(self, name: str, first: int, x: torch.Tensor, y: torch.Tensor, whole: bool) -> None:
        for expert, part in enumerate(x.detach()) if whole else [(first, x.detach())]:
            self.inputs.setdefault((name, expert), []).append(part.reshape(-1, part.shape[-1]))

        def note(gradient: torch.Tensor) -> None:
            for expert, part in enumerate(gradient) if whole else [(first, gradient)]:
                self.gradients.setdefault((name, expert), []).append(part.reshape(-1, part.shape[-1]))

        y.register_hook(note)


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-30
    )


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe", "gpt-oss", "llama4", "falcon"])
def test_products_of_stacks_and_subclasses(make_model: Callable[..., Any], windows: Windows, kind: str) -> None:
    model = make_model(kind)
    targets = {t.name: t for t in find_targets(model) if any(u.own_forward for u in t.uses)}
    assert len(targets) == (8 if kind == "falcon" else 4)
    products = _Products({name: model.get_parameter(name) for name in targets})
    if kind != "falcon":
        model.set_experts_implementation("eager") if kind != "llama4" else None
    model.requires_grad_(True)
    with products:
        logits = model(input_ids=windows.ids, use_cache=False).logits[:, :-1]
        functional.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten(), reduction="sum").backward()
    model.requires_grad_(False)
    statistics = calibrate(model, list(targets.values()), windows)
    for name, target in targets.items():
        experts = range(max(target.experts, 1))
        x = torch.cat([p for e in experts for p in products.inputs.get((name, e), [])])
        rows = target.rows // len(experts)
        g2 = torch.zeros(len(experts), rows, dtype=torch.float64)
        for expert in experts:
            for part in products.gradients.get((name, expert), []):
                g2[expert] += part.double().square().sum(0)
        g2 /= TOKENS
        assert (g2.sum(1) > 0).any()
        floor = EXPERT_FLOOR * g2.mean(0) if target.experts else torch.zeros(rows).double()
        _close(statistics.linear[name].hessian, x.T @ x / len(x))
        _close(statistics.linear[name].output, (g2 + floor).flatten())


def test_experts_weigh_by_their_use(make_model: Callable[..., Any], windows: Windows) -> None:
    """An expert that the router never chooses has the floor, and not nothing."""
    model = make_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.weight[2] = 0
        layer.mlp.gate.register_forward_pre_hook(lambda module, args: (args[0].abs(),))
        layer.mlp.gate.weight[[0, 1, 3]] = layer.mlp.gate.weight[[0, 1, 3]].abs()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    (target,) = [t for t in find_targets(model) if t.name == name]
    output = calibrate(model, [target], windows).linear[name].output.view(4, -1)
    used = output[[0, 1, 3]].sum(0) - 3 * output[2]
    # The mean is over four experts, one of which is zero.
    _close(output[2], EXPERT_FLOOR * used / 4)
    assert (output[2] > 0).all()


def test_a_scaled_embedding_is_felt_before_its_scale(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("gemma")
    ((_, gradient), _) = calibrate(model, find_targets(model), windows).token["model.embed_tokens.weight"].terms
    embedded = model.model.embed_tokens(windows.ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
    functional.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten(), reduction="sum").backward()
    scaled = embedded.grad.flatten(0, 1).double() * float(model.model.embed_tokens.embed_scale)
    _close(gradient, scaled.T @ scaled / TOKENS)


@pytest.mark.parametrize("kind", ["mixtral", "gemma", "llama-untied"])
def test_everything_is_as_it_was_afterwards(make_model: Callable[..., Any], windows: Windows, kind: str) -> None:
    model = make_model(kind)
    before = model.config._experts_implementation
    names = [name for name, _ in model.named_parameters()]
    wanted = model(windows.ids).logits
    collector = Collector(find_targets(model))
    with pytest.raises(RuntimeError, match="inside"), collector.attached(model):
        raise RuntimeError("inside")
    assert model.config._experts_implementation == before
    assert [name for name, _ in model.named_parameters()] == names
    assert not any(m._forward_hooks for m in model.modules())
    assert all(
        isinstance(getattr(m, a), nn.Parameter)
        for m in model.modules()
        for a in m._parameters
        if m._parameters[a] is not None
    )
    assert torch.equal(model(windows.ids).logits, wanted)


@pytest.mark.parametrize("kind", ["llama-untied", "mixtral"])
def test_a_model_may_be_run_in_parts(make_model: Callable[..., Any], windows: Windows, kind: str) -> None:
    """One collector on one layer after the other, each with its prefix, notes what it notes on the whole model."""
    model = make_model(kind)
    targets = find_targets(model)
    whole = calibrate(model, targets, windows, batch_tokens=TOKENS)
    parts = {"model.embed_tokens": model.model.embed_tokens, "lm_head": model.lm_head}
    parts |= {f"model.layers.{i}": layer for i, layer in enumerate(model.model.layers)}
    for prefix, part in parts.items():
        done = [t for t in targets if t.name.startswith(prefix)]
        collector = Collector(done, "model.embed_tokens")
        with collector.attached(part, prefix), torch.enable_grad():
            embedded = model.model.embed_tokens(windows.ids)
            if not embedded.requires_grad:
                embedded = embedded.detach().requires_grad_()
            logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
            functional.cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten(), reduction="sum").backward()
        _same(collector.statistics(TOKENS), whole, len(done))


def _same(got: Statistics, wanted: Statistics, count: int) -> None:
    assert len(got.linear) + len(got.token) == count > 0
    for name, linear in got.linear.items():
        _close(linear.hessian, wanted.linear[name].hessian)
        _close(linear.output, wanted.linear[name].output)
    for name, token in got.token.items():
        for a, b in zip(token.terms, wanted.token[name].terms, strict=True):
            _close(a[0], b[0])
            _close(a[1], b[1])
