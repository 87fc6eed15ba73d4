"""Statistics of a model, against the same taken by plain hooks and plain autograd."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from bitstack.calibrate import Statistics, calibrate
from bitstack.targets import find_targets
from bitstack.text import Windows
from bsformat.errors import ModelError

WINDOWS, LENGTH = 3, 16


@pytest.fixture(scope="module")
def windows() -> Windows:
    return Windows("random", torch.randint(0, 256, (WINDOWS, LENGTH), generator=torch.Generator().manual_seed(0)))


def _calibrate(model: Any, windows: Windows, **options: Any) -> Statistics:
    return calibrate(model, find_targets(model), windows, **options)


@dataclass
class Reference:
    """Inputs of every linear layer and embedding and gradients at its outputs, one window after another."""

    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[torch.Tensor]] = field(default_factory=dict)


def _reference(model: Any, windows: Windows) -> Reference:
    out = Reference()
    kept: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            out.inputs.setdefault(name, []).append(args[0].detach())
            kept[name] = output
            output.retain_grad()

        return record

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Embedding", "Conv1D")
    ]
    model.requires_grad_(True)
    try:
        for ids in windows.ids:
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            loss = -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].sum()
            loss.backward()
            for name, output in kept.items():
                out.gradients.setdefault(name, []).append(output.grad.detach())
        model.zero_grad()
    finally:
        model.requires_grad_(False)
        for handle in handles:
            handle.remove()
    return out


def _squares(parts: list[torch.Tensor]) -> torch.Tensor:
    flat = torch.cat([p.reshape(-1, p.shape[-1]) for p in parts]).double()
    return flat.square().mean(0)


def _moment(parts: list[torch.Tensor]) -> torch.Tensor:
    flat = torch.cat([p.reshape(-1, p.shape[-1]) for p in parts]).double()
    return flat.T @ flat / len(flat)


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Float32 sums in another order; entries that cancel are compared with the largest.
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-30
    )


@pytest.mark.parametrize("kind", ["llama-untied", "llama-gqa", "gpt2", "gpt-neox"])
def test_linear_statistics(make_model: Callable[..., Any], windows: Windows, kind: str) -> None:
    model = make_model(kind)
    statistics, reference = _calibrate(model, windows), _reference(model, windows)
    linear = [t for t in find_targets(model) if not t.by_token]
    assert set(statistics.linear) == {t.name for t in linear}
    assert statistics.tokens == WINDOWS * LENGTH
    for target in linear:
        module = target.uses[0].module
        x = torch.cat([p.reshape(-1, target.columns) for p in reference.inputs[module]])
        assert len(x) == WINDOWS * LENGTH
        got = statistics.linear[target.name]
        assert got.hessian.dtype == torch.float32
        assert got.output.dtype == torch.float64
        _close(got.hessian, x.T @ x / len(x))
        _close(got.output, _squares(reference.gradients[module]))
        assert (got.output > 0).any()


def test_token_statistics_of_an_untied_model(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-untied")
    statistics, reference = _calibrate(model, windows), _reference(model, windows)
    ((frequency, gradient),) = statistics.token["model.embed_tokens.weight"].terms
    assert torch.equal(frequency * WINDOWS * LENGTH, torch.bincount(windows.ids.flatten(), minlength=258).double())
    _close(gradient, _moment(reference.gradients["model.embed_tokens"]))
    ((logits, hidden),) = statistics.token["lm_head.weight"].terms
    _close(logits, _squares(reference.gradients["lm_head"]))
    _close(hidden, _moment(reference.inputs["lm_head"]))


@pytest.mark.parametrize(("kind", "embedding"), [("llama-tied", "model.embed_tokens"), ("gpt2", "transformer.wte")])
def test_a_tied_embedding_has_a_term_for_each_use(
    make_model: Callable[..., Any], windows: Windows, kind: str, embedding: str
) -> None:
    model = make_model(kind)
    statistics, reference = _calibrate(model, windows), _reference(model, windows)
    (frequency, gradient), (logits, hidden) = statistics.token[f"{embedding}.weight"].terms
    assert torch.equal(frequency * WINDOWS * LENGTH, torch.bincount(windows.ids.flatten(), minlength=258).double())
    _close(gradient, _moment(reference.gradients[embedding]))
    _close(logits, _squares(reference.gradients["lm_head"]))
    _close(hidden, _moment(reference.inputs["lm_head"]))


def test_positions_weigh_every_row_alike(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("gpt2")
    # One window at a time, since the windows of a batch share what is looked up here.
    ((rows, columns),) = _calibrate(model, windows, batch_tokens=LENGTH).token["transformer.wpe.weight"].terms
    assert torch.equal(rows, torch.full((64,), 1 / 64).double())
    _close(columns, _moment(_reference(model, windows).gradients["transformer.wpe"]))


def test_layers_with_one_input_share_one_tensor(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-gqa")
    linear = _calibrate(model, windows, batch_tokens=LENGTH).linear
    hessians = {name.removeprefix("model.layers.0."): s.hessian for name, s in linear.items() if ".0." in name}
    groups = {name: id(h) for name, h in hessians.items()}
    q, k, v, o = (groups[f"self_attn.{p}_proj.weight"] for p in "qkvo")
    gate, up, down = (groups[f"mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
    assert q == k == v
    assert gate == up
    assert len({q, o, gate, down}) == 4
    assert len({id(s.hessian) for s in linear.values()}) == 8  # four a layer, none across layers


def test_the_batch_does_not_matter(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-tied")
    one, all_ = (_calibrate(model, windows, batch_tokens=n) for n in (1, 1024))
    for name, statistics in all_.linear.items():
        _close(one.linear[name].hessian, statistics.hessian)
        _close(one.linear[name].output, statistics.output)
    for name, token in all_.token.items():
        for a, b in zip(one.token[name].terms, token.terms, strict=True):
            _close(a[0], b[0])
            _close(a[1], b[1])


def test_gradients_of_a_part_of_the_text(make_model: Callable[..., Any], windows: Windows) -> None:
    """Inputs are seen in all windows, gradients in the first ones only."""
    model = make_model("llama-untied")
    part = _calibrate(model, windows, batch_tokens=LENGTH, gradient_tokens=LENGTH + 1)
    all_ = _calibrate(model, windows)
    two = _calibrate(model, Windows("two", windows.ids[:2]))
    for name, statistics in part.linear.items():
        _close(statistics.hessian, all_.linear[name].hessian)
        _close(statistics.output, two.linear[name].output)
    ((frequency, gradient),) = part.token["model.embed_tokens.weight"].terms
    assert torch.equal(frequency, all_.token["model.embed_tokens.weight"].terms[0][0])
    _close(gradient, two.token["model.embed_tokens.weight"].terms[0][1])


def test_no_gradients_at_all(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("gpt2")
    none, all_ = _calibrate(model, windows, gradient_tokens=0), _calibrate(model, windows)
    for name, statistics in none.linear.items():
        _close(statistics.hessian, all_.linear[name].hessian)
        assert not statistics.output.any()


def test_windows_stand_alone_and_their_last_position_has_no_label(make_model: Callable[..., Any]) -> None:
    """With two tokens a window, only the first position's logits have a gradient: softmax minus the label."""
    model = make_model("llama-untied")
    ids = torch.tensor([[5, 9], [7, 5]])
    (logits, _) = _calibrate(model, Windows("two", ids)).token["lm_head.weight"].terms[0]
    expected = torch.zeros(258).double()
    for window in ids:
        gradient = torch.softmax(model(window[None, :1]).logits[0, 0].double(), -1)
        gradient[window[1]] -= 1
        expected += gradient.square()
    _close(logits, expected / 4)  # a mean over all four positions, two of which have none


def test_layers_that_never_run(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-untied")
    model.model.idle = nn.Linear(40, 48).requires_grad_(False)
    model.model.table = nn.Embedding(40, 48).requires_grad_(False)
    statistics = _calibrate(model, windows)
    idle = statistics.linear["model.idle.weight"]
    assert torch.equal(idle.hessian, torch.eye(40))
    assert torch.equal(idle.output, torch.zeros(48).double())
    assert len(statistics.token["model.table.weight"].terms) == 1


class _Offset(nn.Module):
    """Adds what a linear layer makes of a constant: it runs, but the text does not reach it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.constant = inner, nn.Linear(64, 64).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.inner(*args, **kwargs) + self.constant(torch.ones(64))


def test_layers_that_the_text_does_not_reach(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-untied")
    model.model.layers[0].mlp = _Offset(model.model.layers[0].mlp)
    constant = _calibrate(model, windows).linear["model.layers.0.mlp.constant.weight"]
    assert torch.equal(constant.hessian, torch.ones(64, 64))
    assert not constant.output.any()


class _Twice(nn.Module):
    """Two layers, one behind the other, with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(64, 64, bias=False).requires_grad_(False) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_a_shared_weight_feels_all_its_uses(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-untied")
    model.model.layers[1].mlp = _Twice()
    reference = _reference(model, windows)
    got = _calibrate(model, windows).linear["model.layers.1.mlp.first.weight"]
    names = [f"model.layers.1.mlp.{n}" for n in ("first", "second")]
    moments = []
    for name in names:
        x = torch.cat([p.reshape(-1, 64) for p in reference.inputs[name]])
        moments.append(x.T @ x / len(x))
    _close(got.hessian, (moments[0] + moments[1]) / 2)
    _close(got.output, sum((_squares(reference.gradients[n]) for n in names), torch.zeros(64).double()))


def test_progress_counts_every_token(make_model: Callable[..., Any], windows: Windows) -> None:
    seen: list[int] = []
    _calibrate(make_model("qwen2"), windows, batch_tokens=2 * LENGTH, progress=seen.append)
    assert seen == [2 * LENGTH, LENGTH]


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def test_the_model_is_left_as_it_was(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-tied")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _calibrate(model, windows)
    assert _hooks(model) == 0
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_that_computes_no_numbers(make_model: Callable[..., Any], windows: Windows) -> None:
    model = make_model("llama-untied")
    model.lm_head.weight.fill_(1e38)
    with pytest.raises(ModelError, match="NaN or infinite") as caught:
        _calibrate(model, windows)
    assert caught.value.reason == "model-values"
    assert _hooks(model) == 0
