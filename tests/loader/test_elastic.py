"""A model that grows and shrinks: what it computes, and what is really in memory."""

import random
import weakref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bitstack
import bsformat
from bitstack.kernels import Room
from bsformat.errors import BudgetError, SourceError
from tests.loader.conftest import Load
from tests.loader.held import all_storages, held_bytes, packed_tensors, payloads
from tests.loader.tiny import WatchedSource, fails_beyond

IDS = torch.tensor([[3, 41, 99, 0, 57, 40, 39, 80, 79, 12]])
TYPES = [torch.float32, torch.bfloat16]


def logits(model: Any) -> torch.Tensor:
    """[1, tokens, vocabulary]; every group of rows of the embedding is used."""
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_a_budget_is_kept_and_the_next_block_would_exceed_it(container: bsformat.Container, dtype: torch.dtype) -> None:
    model = bitstack.load(container, "100%", "cpu", dtype)
    widening = model.bitstack.widening
    assert widening != 0, "raw tensors of another type are part of what is tested"
    least, most = container.minimum_bytes + widening, container.total_bytes + widening
    edges = [container.planner.resident_bytes(n) + widening for n in range(container.index.required, len(container))]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(st.integers(least, most + 5000), st.sampled_from(edges), st.sampled_from(edges).map(lambda e: e + 1))
    )
    def check(budget: int) -> None:
        plan = model.bitstack.resize(budget)
        held = held_bytes(model)
        assert held == model.bitstack.resident_bytes == plan.resident_bytes + widening
        assert held <= budget
        assert plan.budget == budget
        if plan.n_blocks < len(container):
            assert held + container.block(plan.n_blocks).length > budget
        else:
            assert held == most

    check()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_minimum_is_exact(container: bsformat.Container, dtype: torch.dtype) -> None:
    widening = bitstack.load(container, "100%", "cpu", dtype).bitstack.widening
    least = container.minimum_bytes + widening
    model = bitstack.load(container, least, "cpu", dtype)
    assert held_bytes(model) == least
    assert model.bitstack.plan.n_blocks == container.index.required
    assert torch.isfinite(logits(model)).all()
    for budget in (least - 1, 0, "0%", "1B"):
        with pytest.raises(BudgetError) as caught:
            bitstack.load(container, budget, "cpu", dtype)
        assert caught.value.reason == "budget-too-small"
        assert "\n" not in str(caught.value)
    with pytest.raises(BudgetError, match=f"a budget of {least - 1} bytes .*: {least} bytes"):
        model.bitstack.resize(least - 1)
    assert model.bitstack.plan.n_blocks == container.index.required


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("budget", ["100%", "auto", None])
def test_all_of_it_is_all_blocks(container: bsformat.Container, dtype: torch.dtype, budget: str | None) -> None:
    model = bitstack.load(container, budget, "cpu", dtype)
    assert model.bitstack.plan.n_blocks == len(container)
    assert model.bitstack.resize("50%").n_blocks < len(container)
    assert model.bitstack.resize(budget).n_blocks == len(container)


@pytest.mark.parametrize("budget", ["much", "-5", "12 parsecs", -3])
def test_a_resize_to_nonsense_changes_nothing(load: Load, container: bsformat.Container, budget: str) -> None:
    model = load(70)
    before = model.bitstack.plan
    with pytest.raises(BudgetError):
        model.bitstack.resize(budget)
    assert model.bitstack.plan == before
    assert held_bytes(model) == model.bitstack.resident_bytes


# --- the same model whatever the way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_fifty_resizes_equal_fresh_loads(load: Load, container: bsformat.Container, dtype: torch.dtype) -> None:
    draw = random.Random(11)
    fresh: dict[int, tuple[torch.Tensor, list[Any], int]] = {}
    model = load(len(container), dtype)
    widening = model.bitstack.widening
    counts = [draw.choice(range(container.index.required, len(container) + 1, 9)) for _ in range(50)]
    for count in counts:
        if count not in fresh:
            plan = container.planner.prefix(count)
            other = bitstack.load(container, plan.resident_bytes + widening, "cpu", dtype)
            assert other.bitstack.plan.n_blocks == count
            fresh[count] = logits(other), payloads(other), held_bytes(other)
        model.bitstack.resize(container.planner.resident_bytes(count) + widening)
        expected, data, size = fresh[count]
        assert torch.equal(logits(model), expected)
        assert payloads(model) == data
        assert held_bytes(model) == model.bitstack.resident_bytes == size
    assert len({tuple(out.flatten().tolist()) for out, _, _ in fresh.values()}) == len(fresh), "every block counts"


def test_a_failed_growth_leaves_the_model_as_it_was(
    load: Load, container: bsformat.Container, source: WatchedSource
) -> None:
    n = len(container)
    model = load(n - 40)
    before, data, plan = logits(model), payloads(model), model.bitstack.plan
    source.trouble = fails_beyond(container.block(n - 10).offset)
    storages = all_storages()
    with pytest.raises(SourceError, match="the cable is cut"):
        model.bitstack.resize("100%")
    assert model.bitstack.plan == plan
    assert torch.equal(logits(model), before)
    assert payloads(model) == data
    assert all_storages() == storages
    source.trouble = fails_beyond(container.size)
    model.bitstack.resize("100%")
    assert torch.equal(logits(model), logits(load(n)))


def test_a_closed_file_lets_a_model_shrink_but_not_grow(tmp_path: Any, tiny_bytes: bytes) -> None:
    path = tmp_path / "tiny.bstk"
    path.write_bytes(tiny_bytes)
    model = bitstack.load(path, "70%", "cpu", memory="3MiB")
    assert model.bitstack.container.memory == 3 << 20
    expected = logits(model)
    model.bitstack.close()
    with pytest.raises(SourceError):
        model.bitstack.resize("100%")
    assert torch.equal(logits(model), expected)
    count = model.bitstack.plan.n_blocks
    assert model.bitstack.resize("50%").n_blocks < count
    assert torch.isfinite(logits(model)).all()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_shrinking_lets_go_of_the_payloads(load: Load, container: bsformat.Container) -> None:
    n = len(container)
    model = load(n)
    logits(model)  # whatever computing keeps, it keeps no payload
    alive = {
        (packed.tensor.name, group, level): weakref.ref(data)
        for packed in packed_tensors(model)
        for group, levels in enumerate(packed.groups)
        for level, (_, data) in enumerate(levels.payloads)
    }
    assert len(alive) == n - container.index.required
    dropped = {
        (b.tensor.name, b.first_row // b.tensor.group_rows, b.level)
        for b in (container.block(number) for number in range(n - 45, n))
    }
    model.bitstack.resize(container.planner.resident_bytes(n - 45) + model.bitstack.widening)
    # No gc.collect(): nothing of a model lies in a cycle that only the collector could end.
    assert {key for key, reference in alive.items() if reference() is None} == dropped


@pytest.mark.parametrize("dtype", TYPES)
def test_storages_rise_and_fall_by_exactly_the_blocks(
    load: Load, container: bsformat.Container, dtype: torch.dtype
) -> None:
    n = len(container)
    load(container.index.required, dtype).bitstack.close()
    model = load(n, dtype)
    logits(model)
    high = all_storages()
    for count in (n - 1, n - 30, container.index.required):
        model.bitstack.resize(container.planner.resident_bytes(count) + model.bitstack.widening)
        dropped = container.total_bytes - container.planner.resident_bytes(count)
        assert high - all_storages() == dropped
        model.bitstack.resize("100%")
        assert all_storages() == high


def test_a_loaded_model_holds_nothing_but_its_weights_and_tables(container: bsformat.Container) -> None:
    before = all_storages()
    model = bitstack.load(container, "100%", "cpu")
    tables = {
        b.untyped_storage().data_ptr(): b.untyped_storage().nbytes()
        for name, b in model.named_buffers()
        if name not in model.state_dict()
    }
    assert all_storages() - before == held_bytes(model) + sum(tables.values())
    del model
    assert all_storages() == before


def test_resident_bytes_return_to_where_they_were(load: Load, container: bsformat.Container) -> None:
    model = load(80)
    start, storages = model.bitstack.resident_bytes, all_storages()
    budget = model.bitstack.plan.budget
    for other in ("100%", "30%", "55%", "100%"):
        model.bitstack.resize(other)
    assert model.bitstack.resize(budget).n_blocks == 80
    assert model.bitstack.resident_bytes == held_bytes(model) == start
    assert all_storages() == storages


def test_tables_have_room_for_just_what_the_file_holds(container: bsformat.Container) -> None:
    model = bitstack.load(container, "100%", "cpu", torch.float32)
    for tensor in packed_tensors(model):
        assert tensor._room == Room.of(tensor.chains), tensor.tensor.name
