"""Layers that are given the same x: one launch for all of them, and never another's or an older product."""

import copy
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bitstack import kernels, siblings
from bitstack.layers import BitStackLinear
from bitstack.packed import PackedTensor
from bitstack.recipe import Options
from bitstack.reference import chain
from bitstack.scales import Scales
from bitstack.siblings import PATIENCE, find_siblings
from bsformat import Tensor

COLUMNS = 128
ROWS = {"q_proj": 48, "k_proj": 16, "v_proj": 16}


def _layer(rows: int, seed: int, bias: bool = False, columns: int = COLUMNS, levels: int = 2) -> BitStackLinear:
    g = torch.Generator().manual_seed(seed)
    scales = Scales.of(torch.rand(rows, generator=g) + 0.5, torch.rand(columns, generator=g) + 0.5)
    packed = PackedTensor(Tensor("w", (rows, columns), "F32", rows, 0, 1), kernels.Room(3, 3))
    packed.set_scales(scales.row, scales.col)
    options = Options(ranks=(3, 2, 1), factors=("F8_E4M3",), walk=False, method="paper")
    made = chain(torch.randn(rows, columns, generator=g), scales, options, seed=seed)
    layer = BitStackLinear(packed, nn.Parameter(torch.randn(rows, generator=g), False) if bias else None)
    layer.stored = [(level.form, torch.frombuffer(bytearray(level.data), dtype=torch.uint8)) for level in made]
    for form, data in layer.stored[:levels]:
        packed.push(0, form, data)
    return layer


def _attention(bias: bool = False) -> nn.Module:
    module = nn.Module()
    for seed, (name, rows) in enumerate(ROWS.items()):
        module.add_module(name, _layer(rows, seed, bias))
    find_siblings(module)
    return module


def _layers(module: nn.Module) -> list[BitStackLinear]:
    return [getattr(module, name) for name in ROWS]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each launch multiplied, where a CPU stands for a GPU."""
    made: list[int] = []

    class Together:
        def __init__(self, chains: Sequence[kernels.Chain]) -> None:
            self.chains = list(chains)

        @staticmethod
        def possible(chains: Sequence[kernels.Chain]) -> bool:
            return True

    def linear_together(x: torch.Tensor, together: Together, biases: Any) -> list[torch.Tensor] | None:
        if x.shape[0] > 4:
            return None
        made.append(len(together.chains))
        return [kernels.linear(x, each, bias=b) for each, b in zip(together.chains, biases, strict=True)]

    fake = SimpleNamespace(Table=kernels.Chain, Together=Together, linear_together=linear_together)
    monkeypatch.setattr(siblings, "kernels", fake)
    monkeypatch.setattr(siblings, "_stream", lambda x: (7, 0))
    return made


def _alone(layer: BitStackLinear, x: torch.Tensor) -> torch.Tensor:
    return layer.packed.linear(x, bias=layer.bias)


def _right(module: nn.Module, x: torch.Tensor) -> bool:
    return all(torch.equal(layer(x), _alone(layer, x)) for layer in _layers(module))


@pytest.mark.parametrize("bias", [False, True])
def test_one_launch_for_all(launches: list[int], bias: bool) -> None:
    module = _attention(bias)
    for number in range(1, 6):
        assert _right(module, torch.randn(1, COLUMNS))
        assert launches == [3] * number
    first, *others = _layers(module)
    x = torch.randn(2, COLUMNS)
    assert [layer(x).shape[1] for layer in (*others, first)] == [16, 16, 48]  # in any order
    assert launches == [3] * 6


def test_what_is_asked_for_twice_is_made_twice(launches: list[int]) -> None:
    module = _attention()
    x = torch.randn(1, COLUMNS)
    one, other = module.q_proj(x), module.q_proj(x)
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()
    assert torch.equal(module.k_proj(x), _alone(module.k_proj, x))
    assert launches == [3]


def _written_to(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


def _an_equal_one(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def _a_part_of_it(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x[:1]


def _grown(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.k_proj.packed.push(0, *module.k_proj.stored[2])
    return x


def _another_bias(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.k_proj.bias.mul_(2)
    return x


def _another_parameter(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.k_proj.bias = nn.Parameter(module.k_proj.bias * 2, False)
    return x


def _other_scales(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.k_proj.packed.set_scales(row_scale=module.k_proj.packed.row_scale * 2)
    return x


def _moved(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    module.to("cpu")
    return x


@pytest.mark.parametrize(
    "change",
    [_written_to, _an_equal_one, _a_part_of_it, _grown, _another_bias, _another_parameter, _other_scales, _moved],
)
def test_a_product_is_never_an_older_one(
    launches: list[int], change: Callable[[nn.Module, torch.Tensor], torch.Tensor]
) -> None:
    module = _attention(bias=True)
    x = torch.randn(2, COLUMNS)
    module.q_proj(x)
    x = change(module, x)
    assert _right(module, x)
    assert _right(module, x.clone())


@pytest.mark.parametrize("stream", [(8, 0), (7, 1)], ids=["stream", "graph"])
def test_nor_one_of_another_stream_or_graph(
    launches: list[int], monkeypatch: pytest.MonkeyPatch, stream: tuple[int, int]
) -> None:
    module = _attention()
    x = torch.randn(1, COLUMNS)
    module.q_proj(x)
    monkeypatch.setattr(siblings, "_stream", lambda x: stream)
    module.k_proj(x)
    assert launches == [3, 3]


def test_a_graph_prepares_nothing(launches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    module = _attention()
    monkeypatch.setattr(siblings, "_stream", lambda x: (7, 1))
    assert _right(module, torch.randn(1, COLUMNS))
    assert not launches


def test_what_is_multiplied_alone(launches: list[int]) -> None:
    module = _attention(bias=True)
    assert _right(module, torch.randn(9, COLUMNS))
    with torch.inference_mode():  # nobody can tell whether x was written to
        assert _right(module, torch.randn(1, COLUMNS))
    x = torch.randn(1, COLUMNS, requires_grad=True)
    assert _right(module, x)
    module.q_proj(x).sum().backward()
    assert x.grad is not None
    assert not launches
    with torch.no_grad():
        assert _right(module, x)
    assert launches == [3]


def test_products_that_nobody_takes_are_made_no_more(launches: list[int]) -> None:
    module = _attention()
    xs = [torch.randn(1, COLUMNS) for _ in range(9)]
    for x in xs:  # as where keys and values are made of something else
        assert torch.equal(module.q_proj(x), _alone(module.q_proj, x))
    assert len(launches) == PATIENCE + 1


def test_a_few_interruptions_do_no_harm(launches: list[int]) -> None:
    module = _attention()
    for _ in range(5):
        module.q_proj(torch.randn(1, COLUMNS))
        assert _right(module, torch.randn(1, COLUMNS))
    assert launches == [3] * 10


def test_threads_do_not_meet(launches: list[int]) -> None:
    module = _attention()
    results: list[bool] = []

    def passes() -> None:
        with torch.no_grad():
            results.extend(_right(module, torch.randn(1, COLUMNS)) for _ in range(50))

    threads = [threading.Thread(target=passes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 200


def test_copies_are_strangers(launches: list[int]) -> None:
    module = _attention()
    x = torch.randn(1, COLUMNS)
    module.q_proj(x)
    for other in (copy.copy(module.k_proj), copy.deepcopy(module.k_proj)):
        assert torch.equal(other(x), _alone(other, x))
        other.packed.push(0, *other.stored[2])
        assert torch.equal(other(x), _alone(other, x))
    assert all(layer.siblings is None for layer in _layers(copy.deepcopy(module)))
    assert launches == [3]


def test_a_layer_that_is_replaced_takes_the_others_apart(launches: list[int]) -> None:
    module = _attention()
    assert _right(module, torch.randn(1, COLUMNS))
    module.k_proj = _layer(16, 9)
    assert _right(module, torch.randn(1, COLUMNS))
    assert launches == [3]


def test_who_are_siblings() -> None:
    model = nn.Module()
    model.add_module("attention", _attention())
    mlp = nn.Module()
    for seed, name in enumerate(("gate_proj", "up_proj", "down_proj")):
        mlp.add_module(name, _layer(32, seed))
    cross = nn.Module()
    cross.add_module("q_proj", _layer(32, 0))
    cross.add_module("k_proj", _layer(32, 1, columns=256))
    alone = nn.Module()
    alone.add_module("q_proj", _layer(32, 0))
    alone.add_module("k_proj", nn.Linear(COLUMNS, 32))
    for name, module in (("mlp", mlp), ("cross", cross), ("alone", alone)):
        model.add_module(name, module)
    find_siblings(model)
    assert len({layer.siblings for layer in _layers(model.attention)}) == 1
    assert mlp.gate_proj.siblings is mlp.up_proj.siblings is not None
    assert [mlp.down_proj.siblings, cross.q_proj.siblings, cross.k_proj.siblings, alone.q_proj.siblings] == [None] * 4


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="no CUDA device of compute capability 9.0",
)
def test_on_a_gpu_and_in_its_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _attention(bias=True).to("cuda")
    count = []
    real = kernels.linear_together
    monkeypatch.setattr(kernels, "linear_together", lambda *args, **more: count.append(1) or real(*args, **more))
    x = torch.randn(1, 1, COLUMNS, device="cuda").bfloat16()
    assert _right(module, x)
    assert len(count) == 1
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert _right(module, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [layer(x) for layer in _layers(module)]
    assert len(count) == 3
    before = [_alone(layer, x) for layer in _layers(module)]
    graph.replay()
    assert all(torch.equal(out, wanted) for out, wanted in zip(outs, before, strict=True))
    for layer in _layers(module):
        form, data = layer.stored[2]
        layer.packed.push(0, form, data.cuda())
    torch.cuda.synchronize()
    graph.replay()
    wanted = [_alone(layer, x) for layer in _layers(module)]
    assert all(torch.equal(out, y) for out, y in zip(outs, wanted, strict=True))
    assert not torch.equal(before[0], wanted[0])
    graphs = [torch.cuda.CUDAGraph() for _ in ROWS]
    for graph, layer, out in zip(graphs, _layers(module), outs, strict=True):  # each layer in a graph of its own
        with torch.cuda.graph(graph, stream=side):
            out.copy_(layer(x))
    x.mul_(-1)
    for graph in graphs[::-1]:
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(out, _alone(layer, x)) for out, layer in zip(outs, _layers(module), strict=True))
    assert _right(module.to("cpu").to("cuda"), x.clone())
