"""Tuning of scales and raw vectors: what it reaches, that it helps, and that nothing else changes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

import bitstack
import bsformat
from bitstack import tuning
from bitstack.packed import PackedTensor
from bitstack.recipe import Options
from bitstack.reference import chain
from bitstack.scales import Scales
from bitstack.tune import Schedule, TunedTensor, _Divergence, tune
from bsformat import Tensor

ROWS, COLUMNS, GROUP = 37, 27, 16
LEVELS = 3


def _packed(group_rows: int = ROWS, own_columns: bool = False) -> PackedTensor:
    """A random matrix with three levels in every chain."""
    tensor = Tensor("w", (ROWS, COLUMNS), "F32", group_rows, 0, 1)
    g = torch.Generator().manual_seed(0)
    weight, row = torch.randn(ROWS, COLUMNS, generator=g), torch.rand(ROWS, generator=g) + 0.5
    cols = [torch.rand(COLUMNS, generator=g) + 0.5 for _ in range(tensor.n_chains if own_columns else 1)]
    scales = [Scales.of(row, c) for c in cols]
    packed = PackedTensor(tensor)
    packed.set_scales(scales[0].row, torch.stack([s.col for s in scales]) if own_columns else scales[0].col)
    options = Options(ranks=(3, 2, 1), factors=("F16",), walk=False, method="paper")
    for group in range(tensor.n_chains):
        part = slice(group * group_rows, (group + 1) * group_rows)
        own = Scales(scales[0].row[part], scales[group if own_columns else 0].col)
        for level in chain(weight[part], own, options, seed=group):
            packed.push(group, level.form, torch.frombuffer(bytearray(level.data), dtype=torch.uint8))
    return packed


def _shortened(packed: PackedTensor, levels: list[int]) -> PackedTensor:
    for group, count in enumerate(levels):
        while packed.levels(group) > count:
            packed.pop(group)
    return packed


KINDS = [(ROWS, False), (GROUP, False), (GROUP, True)]


@pytest.mark.parametrize(("group_rows", "own_columns"), KINDS)
@pytest.mark.parametrize("count", [0, 1, LEVELS])
def test_untrained_it_is_the_packed_tensor(group_rows: int, own_columns: bool, count: int) -> None:
    """With so many levels of the last chain, and all of the others."""
    packed = _packed(group_rows, own_columns)
    tuned = TunedTensor(packed, torch.float32)
    levels = [LEVELS] * (tuned.tensor.n_chains - 1) + [count]
    tuned.use(levels)
    plain = _shortened(packed, levels)
    x = torch.randn(2, 5, COLUMNS, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0, 36], [15, 16]])
    for mine, other in (
        (tuned.linear(x), plain.linear(x)),
        (tuned.matrix(), plain.matrix()),
        (tuned.linear(x, 0), plain.linear(x, 0)),
        (tuned.linear(x, tuned.tensor.n_chains - 1), plain.linear(x, tuned.tensor.n_chains - 1)),
        (tuned.matrix(group=0), plain.matrix(group=0)),
        *([] if own_columns else [(tuned.rows(ids, torch.float32), plain.rows(ids, torch.float32))]),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_rows_with_columns_of_their_own() -> None:
    packed = _packed(GROUP, own_columns=True)
    tuned = TunedTensor(packed, torch.float32)
    tuned.use([LEVELS] * 3)
    ids = torch.tensor([[0, 36], [15, 16]])
    torch.testing.assert_close(tuned.rows(ids, torch.float32), packed.rows(ids, torch.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("group_rows", "own_columns"), KINDS)
@pytest.mark.parametrize("use", ["linear", "group", "rows", "matrix"])
def test_gradients_are_those_of_the_dense_matrix(group_rows: int, own_columns: bool, use: str) -> None:
    tuned = TunedTensor(_packed(group_rows, own_columns), torch.float32)
    tuned.use([LEVELS] * tuned.tensor.n_chains)
    x = torch.randn(6, COLUMNS, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(0, ROWS, 2)
    first = slice(0, tuned.tensor.group_rows)
    row, col = (s.detach().clone().requires_grad_() for s in tuned.scales())
    each = col if col.ndim == 1 else col.repeat_interleave(GROUP, 0)[:ROWS]
    base = tuned.matrix().detach() / row.detach()[:, None] / each.detach()
    dense = base * row[:, None] * each
    mine, plain = {
        "linear": lambda: (tuned.linear(x), x @ dense.T),
        "group": lambda: (tuned.linear(x, 0), x @ dense[first].T),
        "rows": lambda: (tuned.rows(ids, torch.float32), dense[ids]),
        "matrix": lambda: (tuned.matrix(), dense),
    }[use]()
    weight = torch.randn(mine.shape, generator=torch.Generator().manual_seed(2))
    (mine * weight).sum().backward()
    (plain * weight).sum().backward()
    assert row.grad is not None
    assert col.grad is not None
    # Of the logarithm of a scale: the scale times its own gradient.
    for change, scale in ((tuned.row_change, row), (tuned.col_change, col)):
        assert change.grad is not None
        assert change.grad.abs().max() > 0
        torch.testing.assert_close(change.grad, scale.grad * scale.detach(), rtol=1e-3, atol=1e-3)


def test_scales_that_are_not_there() -> None:
    with pytest.raises(RuntimeError, match="w has no scales yet"):
        TunedTensor(PackedTensor(Tensor("w", (4, 4), "F32", 4, 0, 1)), torch.float32)


# A whole model

Levels = list[dict[str, list[int]]]


def _levels(container: bsformat.Container, budgets: tuple[int, ...]) -> Levels:
    """So many levels of every chain, as far as there are."""
    counts = torch.bincount(torch.from_numpy(container.index.chain.astype("int64"))).tolist()
    packed = [t for t in container.model_tensors.values() if t.packed]
    return [
        {t.name: [min(n, c) for c in counts[t.first_chain : t.first_chain + t.n_chains]] for t in packed}
        for n in budgets
    ]


def _windows(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 24), generator=torch.Generator().manual_seed(4))


def _divergence(model: Any, dense: Any, windows: torch.Tensor) -> float:
    with torch.no_grad():
        mine, wanted = (torch.log_softmax(m(input_ids=windows).logits.double(), -1) for m in (model, dense))
    return float(functional.kl_div(mine, wanted, log_target=True, reduction="sum")) / windows.numel()


def _set(model: Any, found: Mapping[str, torch.Tensor]) -> None:
    for module in model.modules():
        packed = getattr(module, "packed", None)
        if isinstance(packed, PackedTensor):
            name = packed.tensor.name
            packed.set_scales(found[f"{name}#row_scale"].half(), found[f"{name}#col_scale"].half())
    for name, value in model.named_parameters():
        if name in found:
            value.data.copy_(found[name])


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "mixtral"])
def test_a_model_is_tuned(packed: Callable[[str], Any], kind: str) -> None:
    pack, windows, seen = packed(kind), _windows(30), []
    with bsformat.open(pack.path) as container:
        model = bitstack.load(container, "100%", "cpu", torch.float32)
        levels, tensors = _levels(container, (2, 4)), container.model_tensors
        shapes = {t.name: tuple(t.shape) for t in container.tensors}
        before = model(input_ids=windows[:2]).logits
        found = tune(
            model,
            lambda ids: pack.model(input_ids=ids, use_cache=False).logits,
            windows,
            levels,
            Schedule(0.01, 0),
            progress=seen.append,
        )
        # The model is as it was, to the last bit.
        assert torch.equal(model(input_ids=windows[:2]).logits, before)
        assert not any(isinstance(getattr(m, "packed", None), TunedTensor) for m in model.modules())
        assert all(p.grad is None for p in model.parameters())
        assert seen == [1] * 30

        vectors = {n: p for n, p in model.named_parameters() if p.ndim == 1}
        names = [t.name for t in tensors.values() if t.packed]
        assert set(found) == {f"{n}#{s}_scale" for n in names for s in ("row", "col")} | set(vectors)
        assert vectors
        stored = bitstack.load(container, "100%", "cpu", torch.float32)
        old = {n: p.clone() for n, p in vectors.items()}
        for module in stored.modules():
            if isinstance(getattr(module, "packed", None), PackedTensor):
                old[f"{module.packed.tensor.name}#row_scale"] = module.packed.row_scale
                old[f"{module.packed.tensor.name}#col_scale"] = module.packed.col_scale
        for name, value in found.items():
            assert value.dtype == torch.float32
            assert tuple(value.shape) == shapes[name]
            assert torch.isfinite(value).all()
            # The gradient has reached it.
            assert not torch.equal(value, old[name].float()), name
            # Its logarithm has moved by the rate times the number of steps at most.
            ratio = value / old[name].float()
            assert 0.7 < float(ratio.nan_to_num(1).min()) <= float(ratio.nan_to_num(1).max()) < 1.4

        for module in stored.modules():
            if isinstance(getattr(module, "packed", None), PackedTensor):
                _shortened(module.packed, levels[0][module.packed.tensor.name])
        worse = _divergence(stored, pack.model, windows)
        _set(stored, found)
        assert _divergence(stored, pack.model, windows) < 0.95 * worse


def test_the_seed_decides(packed: Callable[[str], Any]) -> None:
    pack, windows = packed("llama-tied"), _windows(4)
    with bsformat.open(pack.path) as container:
        model = bitstack.load(container, "100%", "cpu", torch.float32)

        def run(seed: int) -> dict[str, torch.Tensor]:
            levels = _levels(container, (1, 3, 5))
            return tune(model, lambda ids: pack.model(ids).logits, windows, levels, Schedule(0.01, seed))

        first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_error_leaves_the_model_as_it_was(packed: Callable[[str], Any]) -> None:
    pack, windows = packed("llama-tied"), _windows(2)

    def fail(ids: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with bsformat.open(pack.path) as container:
        model = bitstack.load(container, "100%", "cpu", torch.float32)
        before = model(input_ids=windows).logits
        with pytest.raises(KeyboardInterrupt):
            tune(model, fail, windows, _levels(container, (2,)), Schedule(0.01, 0))
    assert torch.equal(model(input_ids=windows).logits, before)


# The step of packing


def test_budgets_are_prefixes_of_the_file(packed: Callable[[str], Any]) -> None:
    with bsformat.open(packed("llama-tied").path) as container:
        found = tuning._budgets(container, (0.001, 2.0, 4.0, 64.0))
        chains = container.index.chain[container.index.required :].tolist()
        sizes = dict(zip(range(len(container)), container.index.length.tolist(), strict=True))
        elements = sum(t.rows * t.columns for t in container.model_tensors.values() if t.packed)
        for bits, levels in zip((0.001, 2.0, 4.0, 64.0), found, strict=True):
            count = sum(sum(per) for per in levels.values())
            used = chains[:count]
            for name, per in levels.items():
                tensor = container.model_tensors[name]
                assert per == [used.count(tensor.first_chain + g) for g in range(tensor.n_chains)]
            required = container.index.required
            size = sum(sizes[n] for n in range(required, required + count))
            assert size <= elements * bits / 8
            assert count == len(chains) or size + sizes[required + count] > elements * bits / 8
        assert sum(sum(per) for per in found[0].values()) == 0
        assert sum(sum(per) for per in found[-1].values()) == len(chains)


@pytest.fixture(scope="module")
def recipe(small: bitstack.Recipe) -> bitstack.Recipe:
    few = {"designs": ("b2",), "tail": "b1", "ranks": (2,)}
    return small.changed({f"decompose.{part}.{k}": v for part in ("linear", "token") for k, v in few.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save_model: Any) -> Path:
    path: Path = save_model(make_model("llama-gqa"), tmp_path_factory.mktemp("tune") / "model")
    return path


def _contents(path: str) -> dict[tuple[str, int, int], bytes]:
    """The bytes of every block, by tensor, chain and level."""
    with bsformat.open(path) as container:
        index = container.index
        return {
            (container.block(n).tensor.name, int(index.chain[n]), int(index.level[n])): bytes(container.read_block(n))
            for n in range(len(container))
        }


@pytest.mark.parametrize("order", ["worth", "random"])
def test_a_file_holds_what_was_tuned(folder: Path, recipe: bitstack.Recipe, tmp_path: Path, order: str) -> None:
    """Scales and vectors differ, and no other block does."""
    recipe = recipe.changed({"order.method": order})
    (tmp_path / "text").write_text("".join(f"{n} is a number. " for n in range(400)))
    plain = bitstack.pack(folder, tmp_path / "a.bstk", recipe=recipe, calib=tmp_path / "text")
    tuned = bitstack.pack(
        folder,
        tmp_path / "b.bstk",
        recipe=recipe.changed({"tune.steps": 3}),
        calib=tmp_path / "text",
        work=tmp_path / "work",
        keep_work=True,
    )
    assert (plain.untuned, tuned.untuned) == ("", "")
    one, other = _contents(plain.path), _contents(tuned.path)
    assert set(one) == set(other)
    with bsformat.open(tuned.path) as container:
        packed = {t.name for t in container.model_tensors.values() if t.packed}
        vectors = {t.name for t in container.tensors if t.name not in packed}
        assert all(one[key] == other[key] for key in one if key[0] in packed)
        assert {key[0] for key in one if one[key] != other[key]} == vectors
    values = load_file(tmp_path / "work" / "tuned.safetensors")
    for (name, *_), data in other.items():
        if name.endswith("_scale"):
            stored = torch.frombuffer(bytearray(data), dtype=torch.float16)
            assert torch.equal(stored, values[name].half())


def test_without_memory_it_is_left_out(
    folder: Path, recipe: bitstack.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe.changed({"tune.steps": 2})
    monkeypatch.setattr(tuning, "free_bytes", lambda device: 100_000)
    skipped = bitstack.pack(folder, tmp_path / "x.bstk", recipe=recipe, work=tmp_path / "work", keep_work=True)
    assert skipped.untuned.startswith("it takes ")
    assert skipped.untuned.endswith(", of 97.7 KiB that are free on cpu")
    # A run that goes on with more memory does the same.
    monkeypatch.setattr(tuning, "free_bytes", lambda device: None)
    (tmp_path / "work" / "draft.bstk").unlink()
    again = bitstack.pack(folder, tmp_path / "x.bstk", recipe=recipe, work=tmp_path / "work")
    assert (again.root, again.untuned) == (skipped.root, skipped.untuned)
    tuned = bitstack.pack(folder, tmp_path / "y.bstk", recipe=recipe)
    assert tuned.untuned == ""
    assert tuned.root != skipped.root


@pytest.mark.parametrize("teacher_type", [torch.float32, torch.float64])
def test_the_divergence_and_its_gradient_are_those_of_torch(teacher_type: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(300, 50, generator=draw, requires_grad=True)  # more rows than are compared at once
    teacher = torch.randn(300, 50, generator=draw)
    expected = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="sum")
    (wanted,) = torch.autograd.grad(expected / 7, student)
    loss = _Divergence.apply(student, teacher.to(teacher_type))
    (got,) = torch.autograd.grad(loss / 7, student)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got, wanted)
