"""The paper's perplexity sweep: what is measured, how often, and the orders that follow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack import sweep as sweep_module
from bitstack.checkpoint import open_checkpoint
from bitstack.progress import Silent
from bitstack.recipe import Order
from bitstack.recipe_file import load_recipe
from bitstack.sweep import (
    average_order,
    chain_sizes,
    greedy_order,
    measured_counts,
    random_order,
    sweep,
    swept_text,
)
from bitstack.text import Windows
from bsformat import Container
from bsformat.registry import KINDS

TINY = {
    "decompose.linear.ranks": (2, 2, 1),
    "calib.tokens": 64,
    "calib.window": 32,
    "eval.heldout_tokens": 32,
    "eval.curve_points": 2,
    "order.sweep_tokens": 32,
}
LINEAR = 14  # linear layers of a model of two decoder layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save_model: Any) -> Path:
    path: Path = save_model(make_model("llama-tied"), tmp_path_factory.mktemp("sweep") / "model")
    return path


@pytest.fixture(scope="module")
def container(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The reference recipe without its sweep, the embedding packed too and cut into groups of rows."""
    path = tmp_path_factory.mktemp("sweep") / "x.bstk"
    recipe = load_recipe("reference-random").changed(TINY)
    recipe = recipe.changed({"decompose.token.mode": "pack", "decompose.token.ranks": (2, 1)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitstack.targets.EMBEDDING_GROUP_ROWS", 100)
        bitstack.pack(folder, path, recipe=recipe)
    with bsformat.open(path) as opened:
        yield opened


class Recorder:
    """Stands for the model's perplexity, and looks at its weights whenever it is asked."""

    def __init__(self, model: Any, names: list[str]) -> None:
        self.model = model
        self.names = names
        self.seen: list[dict[str, torch.Tensor]] = []

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {name: self.model.get_parameter(name).data for name in self.names}

    def __call__(self) -> float:
        self.seen.append({name: value.clone() for name, value in self.state.items()})
        return float(len(self.seen) + 1)


def test_each_chain_is_measured_with_all_others_complete(container: Container, folder: Path) -> None:
    model = open_checkpoint(folder).model
    packed = [t for t in container.model_tensors.values() if t.packed]
    record = Recorder(model, [t.name for t in packed])
    scores = sweep(container, model, record)
    sizes = chain_sizes(container)
    assert sorted(map(len, sizes.values())) == [2] * 3 + [3] * LINEAR  # the embedding: 258 rows in groups of 100
    assert len(record.seen) == 1 + 3 * 2 + LINEAR * 3
    complete = record.seen[0]
    at = 1
    for chain, size in sizes.items():
        part = container.chains
        tensor = container.tensors[int(part.tensor[chain])]
        first, rows = int(part.first_row[chain]), int(part.rows[chain])
        for count in range(len(size)):
            now = record.seen[at]
            for name in now:
                if name != tensor.name:
                    assert torch.equal(now[name], complete[name])
            inside = now[tensor.name][first : first + rows]
            assert bool(inside.any()) == (count > 0)
            outside = torch.ones(tensor.rows, dtype=torch.bool)
            outside[first : first + rows] = False
            assert torch.equal(now[tensor.name][outside], complete[tensor.name][outside])
            assert not torch.equal(inside, complete[tensor.name][first : first + rows])
            assert scores[chain][count] == pytest.approx(torch.tensor(at + 2.0).log().item())
            at += 1
        assert scores[chain][-1] == pytest.approx(torch.tensor(2.0).log().item())
    for name, value in complete.items():
        torch.testing.assert_close(record.state[name], value)


def test_the_complete_model_is_what_a_reader_loads(container: Container, folder: Path) -> None:
    model = open_checkpoint(folder).model
    sweep(container, model, lambda: 2.0, 1)
    ids = torch.arange(20)[None]
    loaded = bitstack.load(container, "500%", "cpu", torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, loaded(ids).logits, rtol=1e-3, atol=1e-3)


def test_the_weights_that_were_there_are_left_alone(container: Container, folder: Path) -> None:
    """They may be mapped from the file of the model."""
    model = open_checkpoint(folder).model
    before = {name: (value.data, value.data.clone()) for name, value in model.named_parameters()}
    sweep(container, model, lambda: 2.0, 1)
    assert all(torch.equal(value, copy) for value, copy in before.values())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    packed = [t.name for t in container.model_tensors.values() if t.packed]
    assert all(not torch.equal(model.get_parameter(name), before[name][1]) for name in packed)


def test_a_sweep_goes_on_where_it_was_ended(container: Container, folder: Path) -> None:
    calls = []

    def evaluate() -> float:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        value = model.model.layers[0].mlp.up_proj.weight.norm() + model.model.layers[1].mlp.up_proj.weight.norm()
        return float(value + model.model.embed_tokens.weight.norm())

    kept: dict[int, list[float]] = {}
    model = open_checkpoint(folder).model
    with pytest.raises(KeyboardInterrupt):
        sweep(container, model, evaluate, keep=kept.update)
    assert len(kept) == 4  # 1 + 3 chains of 2 and 1 of 3 are complete
    model = open_checkpoint(folder).model
    again = sweep(container, model, evaluate, known=kept)
    assert len(calls) == 12 + LINEAR * 3 - 3
    model = open_checkpoint(folder).model
    assert sweep(container, model, evaluate) == again
    assert list(again) == list(chain_sizes(container))


def test_transposed_weights(packed: Callable[[str], Any]) -> None:
    """GPT-2's Conv1D holds the transpose."""
    pack = packed("gpt2")
    model = open_checkpoint(pack.folder).model
    with bsformat.open(pack.path) as container:
        sweep(container, model, lambda: 2.0, 1)
        loaded = bitstack.load(container, "500%", "cpu", torch.float32)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, loaded(ids).logits, rtol=1e-3, atol=1e-3)


def test_fewer_measurements_are_interpolated(container: Container, folder: Path) -> None:
    model = open_checkpoint(folder).model
    values = iter([1.0] + [torch.tensor(4.0).exp().item()] * 100)
    scores = sweep(container, model, lambda: next(values), 1)
    for chain, size in chain_sizes(container).items():
        n = len(size)
        assert scores[chain] == pytest.approx([4 - 4 * i / n for i in range(n + 1)])


@pytest.mark.parametrize(
    ("levels", "limit", "counts"),
    [
        (4, 0, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (16, 4, [0, 4, 8, 12]),
        (5, 2, [0, 2]),
        (16, 1, [0]),
        (1, 1, [0]),
    ],
)
def test_how_many_are_measured(levels: int, limit: int, counts: list[int]) -> None:
    assert measured_counts(levels, limit) == counts


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_perplexity_that_is_none_is_the_worst(container: Container, folder: Path, value: float) -> None:
    model = open_checkpoint(folder).model
    values = iter([8.0] + [value] * 100)
    scores = sweep(container, model, lambda: next(values), 1)
    assert {score[0] for score in scores.values()} == {700.0}
    assert all(order[1] >= 0 for order in greedy_order(chain_sizes(container), scores))


@pytest.mark.parametrize(
    ("tokens", "shape"), [(1, (1, 2)), (10, (1, 10)), (32, (1, 32)), (100, (3, 32)), (9999, (4, 32))]
)
def test_the_text_of_the_sweep(tokens: int, shape: tuple[int, int]) -> None:
    windows = Windows("t", torch.arange(128).view(4, 32))
    part = swept_text(windows, Order(sweep_tokens=tokens))
    assert part.ids.shape == shape
    assert torch.equal(part.ids, windows.ids[: shape[0], : shape[1]])


# The orders

SIZES = {3: [10, 10, 10], 5: [20, 20], 7: [5]}
SCORES = {3: [9.0, 4.0, 3.0, 1.0], 5: [6.0, 5.0, 1.0], 7: [7.0, 1.0]}


def test_average_goes_level_by_level() -> None:
    order = average_order(SIZES, SCORES)
    assert order == [(3, 0.5), (7, 1.2), (5, 0.05), (5, 0.2), (3, 0.1), (3, 0.2)]
    held = dict.fromkeys(SIZES, 0)
    for chain, _ in order:
        held[chain] += 1
        short = [held[c] for c in SIZES if held[c] < len(SIZES[c])]
        assert max(held.values()) - min(short, default=max(held.values())) <= 1


def test_greedy_takes_the_most_missed_block() -> None:
    assert [chain for chain, _ in greedy_order(SIZES, SCORES)] == [3, 7, 5, 5, 3, 3]
    # A level that is missed more than the one before it follows at once; it cannot come first.
    rising = {3: [2.0, 8.0, 1.0, 1.0], 5: [6.0, 1.0, 1.0], 7: [7.0, 1.0]}
    assert [chain for chain, _ in greedy_order(SIZES, rising)] == [7, 5, 3, 3, 3, 5]
    assert greedy_order(SIZES, rising)[2] == (3, 0.0)


def test_random_holds_every_block_and_follows_the_seed() -> None:
    sizes = {c: [1] * 20 for c in range(5)}
    orders = [random_order(sizes, seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert sorted(chain for chain, _ in order) == sorted(c for c in sizes for _ in range(20))
        assert {worth for _, worth in order} == {0.0}


def test_no_chains_no_order() -> None:
    assert average_order({}, {}) == greedy_order({}, {}) == random_order({}, 0) == []


# From end to end


@pytest.mark.parametrize(
    ("name", "changes", "evaluations"),
    [
        ("reference", {}, 1 + LINEAR * 3),
        ("reference", {"order.sweep_levels": 1}, 1 + LINEAR),
        ("reference", {"order.sweep_tokens": 0}, 0),
        ("reference-greedy", {}, 1 + LINEAR * 3),
        ("reference-random", {}, 0),
        ("reference-no-scale", {"decompose.linear.svd": "exact"}, 1 + LINEAR * 3),
    ],
)
def test_packing_by_the_reference(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, Any],
    evaluations: int,
) -> None:
    calls = []
    perplexity = sweep_module.perplexity

    def counted(*args: Any, **options: Any) -> float:
        calls.append(args[1].ids.numel())
        return perplexity(*args, **options)

    monkeypatch.setattr(sweep_module, "perplexity", counted)
    recipe = load_recipe(name).changed(TINY | changes)
    result = bitstack.pack(folder, tmp_path / "x.bstk", recipe=recipe)
    assert calls == [32] * evaluations
    assert "model.embed_tokens.weight" in result.raw
    with bsformat.open(result.path) as container:
        assert bitstack.Recipe.from_json(container.metadata.extra["recipe"]) == recipe
        first = container.index.required
        levels = container.index.level[first:].tolist()
        chains = container.index.chain[first:].tolist()
        assert len(levels) == LINEAR * 3
        assert (levels == sorted(levels)) == (recipe.order.method == "average")
        assert {f.kind for f in container.metadata.forms} == {"raw", "sign"}
        assert {(f.factors, f.rank) for f in container.metadata.forms if f.kind == "sign"} == {("F16", 2), ("F16", 1)}
        for tensor in container.tensors:
            if tensor.name.endswith("#row_scale"):
                block = container.index.chain.tolist().index(tensor.first_chain)
                assert container.read_block(block) == b"\x00\x3c" * tensor.rows * tensor.columns
        worths = container.index.worth[first:].tolist()
        assert all(w >= 0 for w in worths)
        assert any(worths) == (evaluations > 0)
        if recipe.order.sweep_tokens == 0:
            assert chains[:LINEAR] == sorted(chains[:LINEAR])
        assert bsformat.verify(container).ok


@pytest.mark.skipif("lowrank" not in KINDS, reason="the format has no block kind lowrank yet")
def test_packing_without_absolute_values(folder: Path, tmp_path: Path) -> None:
    """Levels of a low-rank part only, of nearly the bytes that sign blocks have, and a worse model."""
    files = {}
    for name in ("reference", "reference-no-abs"):
        recipe = load_recipe(name).changed(TINY | {"order.sweep_tokens": 0})
        path = bitstack.pack(folder, tmp_path / f"{name}.bstk", recipe=recipe).path
        with bsformat.open(path) as container:
            kinds = {f.kind for f in container.metadata.forms}
            (curve,) = container.metadata.curves
            files[name] = (kinds, container.total_bytes, len(container), curve.points[-1][1])
    (signs, plain) = files.values()
    assert (signs[0], plain[0]) == ({"raw", "sign"}, {"raw", "lowrank"})
    assert 0.8 * signs[1] < plain[1] <= signs[1]
    assert signs[2] == plain[2]


def test_every_evaluation_is_reported(folder: Path, tmp_path: Path) -> None:
    done: list[int] = []

    class Report(Silent):
        @contextmanager
        def stage(self, title: str, total: int, unit: str, done_before: int = 0) -> Iterator[Callable[[int], object]]:
            yield done.append if title == "sweep" else lambda count: None
            if title == "sweep":
                assert (total, unit) == (sum(done), "token")

    bitstack.pack(folder, tmp_path / "x.bstk", recipe=load_recipe("reference").changed(TINY), report=Report())
    assert done == [32] * (1 + LINEAR * 3)


def test_planes_are_measured_with_the_magnitudes_before_them(folder: Path, tmp_path: Path) -> None:
    """This project's chains in the paper's order: every level of sign blocks, planes and sparse blocks is there."""
    recipe = bitstack.Recipe().changed(
        {name: value for name, value in TINY.items() if name != "decompose.linear.ranks"}
        | {"decompose.linear.designs": ("s1 b2",), "decompose.token.designs": ("b1",), "tune.steps": 0}
        | {
            f"decompose.{part}.{name}": value
            for part in ("linear", "token")
            for name, value in {"tail": "b2", "ranks": (2,), "stretches": (1.0,)}.items()
        }
        | {"order.method": "average"}
    )
    path = bitstack.pack(folder, tmp_path / "x.bstk", recipe=recipe).path
    with bsformat.open(path) as container:
        levels = container.index.level[container.index.required :].tolist()
        assert levels == sorted(levels)
        assert {f.kind for f in container.metadata.forms} == {"raw", "sign", "plane", "sparse"}
        model = open_checkpoint(folder).model
        sweep(container, model, lambda: 2.0, 1)
        loaded = bitstack.load(container, "500%", "cpu", torch.float32)
        ids = torch.arange(20)[None]
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, loaded(ids).logits, rtol=1e-3, atol=1e-3)
