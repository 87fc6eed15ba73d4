"""Training beside packed weights: gradients through them, adapters on top of them, and what that holds in memory."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bitstack
from bitstack.kernels import gradient
from bitstack.layers import BitStackLinear
from bitstack.packed import PackedTensor
from bitstack.standin import StandIn

IDS = torch.tensor([[5, 9, 200, 31, 7, 4, 88, 150]])
#: Of the norm of the dense model's gradients, in float32: the sums are made in another order.
CLOSE = 1e-4


@pytest.fixture
def model(tiny_bstk: Path) -> Any:
    return bitstack.load(tiny_bstk, "100%", "cpu", torch.float32)


def dense_twin(model: Any) -> Any:
    """The same model, its packed weights rebuilt."""
    twin = type(model)(copy.deepcopy(model.config)).eval()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            path, _, attribute = name.rpartition(".")
            weight = getattr(model.get_submodule(path), attribute)
            parameter.copy_(weight.dense() if isinstance(weight, StandIn) else weight)
    return twin.requires_grad_(False)


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def embedded(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.get_input_embeddings()(IDS).clone().requires_grad_()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_dense_model(model: Any, checkpointing: bool) -> None:
    twin = dense_twin(model)
    if checkpointing:  # under its new name, or the old one
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.train()
    found = []
    for one in (model, twin):
        inputs = embedded(one)
        one(inputs_embeds=inputs, labels=IDS, use_cache=False).loss.backward()
        found.append(inputs.grad)
    assert distance(*found) < CLOSE


def test_a_bias_has_a_gradient(model: Any) -> None:
    packed: PackedTensor = model.model.layers[0].mlp.up_proj.packed
    layer = BitStackLinear(packed, nn.Parameter(torch.zeros(packed.tensor.rows)))
    assert isinstance(layer, nn.Linear)
    layer(torch.randn(2, 3, layer.in_features)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((layer.out_features,), 6.0))


def test_a_pass_of_before_a_resize_goes_back_as_it_came(model: Any) -> None:
    twin, inputs, other = dense_twin(model), embedded(model), embedded(model)
    loss = model(inputs_embeds=inputs, labels=IDS).loss
    model.bitstack.resize(model.bitstack.container.minimum_bytes + model.bitstack.widening)
    loss.backward()
    twin(inputs_embeds=other, labels=IDS).loss.backward()
    assert distance(inputs.grad, other.grad) < CLOSE


def test_a_compiled_layer_has_the_same_gradient(model: Any) -> None:
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(4, layer.in_features, requires_grad=True)
    layer(x).tanh().sum().backward()
    plain, x.grad = x.grad, None
    torch._dynamo.reset()
    torch.compile(lambda x: layer(x).tanh(), backend="aot_eager", fullgraph=True)(x).sum().backward()
    torch._dynamo.reset()
    assert distance(x.grad, plain) < CLOSE


class Made(TorchDispatchMode):
    """Notes the most elements of a floating tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.elements = max(self.elements, value.numel())
        return result


def test_no_dense_weight_is_kept_and_none_is_made(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gradient.TILE, "cpu", 1024)
    matrices = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, BitStackLinear)}
    smallest = min(rows * columns for rows, columns in matrices)
    saved: list[tuple[int, ...]] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(value.shape))
        return value

    short = IDS[:, :4]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        inputs = embedded(model)[:, :4].detach().requires_grad_()
        loss = model(inputs_embeds=inputs, labels=short, use_cache=False).loss
    assert saved
    assert not {shape for shape in saved if shape in matrices or shape[::-1] in matrices}
    with Made() as made:
        loss.backward()
    assert 1024 <= made.elements < smallest


def test_a_packed_weight_is_not_assigned(model: Any) -> None:
    """Merging an adapter would be lost without a word: what is assigned to is a stand-in of a moment."""
    with pytest.raises(TypeError, match="cannot be changed or merged"):
        model.lm_head.weight.data += 1


# --- peft ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_lora_learns_and_its_gradients_are_those_over_the_dense_model(model: Any, tmp_path: Path, targets: Any) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    held = model.bitstack.resident_bytes
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"}
    twin = dense_twin(model)
    adapted, wanted = get_peft_model(model, LoraConfig(**settings)), get_peft_model(twin, LoraConfig(**settings))
    wanted.load_state_dict(adapted.state_dict(), strict=False)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)

    losses, optimiser = [], torch.optim.Adam(trained.values(), lr=1e-2)
    for step in range(8):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(float(loss.detach()))
        if step == 1:  # at the first step one half of every adapter is zero, and so is the other's gradient
            wanted.load_state_dict({n: p.detach() for n, p in trained.items()}, strict=False)
            wanted(input_ids=IDS, labels=IDS).loss.backward()
            others = dict(wanted.named_parameters())
            assert max(distance(p.grad, others[name].grad) for name, p in trained.items()) < 10 * CLOSE
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < 0.75 * losses[0]
    assert model.bitstack.resident_bytes - sum(p.nbytes for p in trained.values()) == held

    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    with torch.no_grad():
        after = adapted(input_ids=IDS, labels=IDS).loss
        fresh = bitstack.load(model.bitstack.container, "100%", "cpu", torch.float32)
        again = PeftModel.from_pretrained(fresh, tmp_path)(input_ids=IDS, labels=IDS).loss
    assert torch.allclose(after, again)
    with pytest.raises(TypeError, match="cannot be changed or merged"):
        adapted.merge_and_unload()
