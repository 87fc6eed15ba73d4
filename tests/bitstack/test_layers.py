"""Packed tensors and the layers that run on them, against the dense matrix of the same blocks."""

import copy
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import bitstack
from bitstack.layers import BitStackEmbedding, BitStackLinear
from bitstack.packed import PackedTensor
from bitstack.recipe import Options
from bitstack.reference import chain
from bitstack.scales import Scales
from bsformat import Form, Tensor, payload, rebuild, sparse

ROWS, COLUMNS = 37, 27

Stored = list[list[tuple[Form, torch.Tensor]]]


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _make(
    rows: int = ROWS, group_rows: int = ROWS, *, factors: str = "F8_E4M3", own_columns: bool = False, **changes: Any
) -> tuple[PackedTensor, Stored]:
    """A packed tensor with its scales, and the blocks of each of its chains, none of them pushed yet."""
    tensor = Tensor("w", (rows, COLUMNS), "F32", group_rows, 0, 1, **changes)
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, COLUMNS, generator=g)
    row = torch.rand(rows, generator=g) + 0.5
    cols = [torch.rand(COLUMNS, generator=g) + 0.5 for _ in range(tensor.n_chains if own_columns else 1)]
    scales = [Scales.of(row, c) for c in cols]
    packed = PackedTensor(tensor)
    col_scale = torch.stack([s.col for s in scales]) if own_columns else scales[0].col
    packed.set_scales(scales[0].row, col_scale)
    stored: Stored = []
    for group in range(tensor.n_chains):
        part = slice(group * group_rows, (group + 1) * group_rows)
        own = Scales(scales[0].row[part], scales[group if own_columns else 0].col)
        levels = chain(
            weight[part], own, Options(ranks=(3, 2, 1), factors=(factors,), walk=False, method="paper"), seed=group
        )
        stored.append([(level.form, _bytes(level.data)) for level in levels])
    return packed, stored


def _push(packed: PackedTensor, stored: Stored) -> PackedTensor:
    for group, levels in enumerate(stored):
        for form, data in levels:
            packed.push(group, form, data)
    return packed


def _dense(packed: PackedTensor, stored: Stored) -> torch.Tensor:
    """W in float64 from the bytes, by the format's own reference."""
    tensor = packed.tensor
    assert packed.row_scale is not None
    assert packed.col_scale is not None
    parts = []
    for group, levels in enumerate(stored):
        start = group * tensor.group_rows
        row = packed.row_scale[start : start + tensor.group_rows].double().numpy()
        col = packed.col_scale if packed.col_scale.ndim == 1 else packed.col_scale[group]
        blocks = [(form, data.numpy().tobytes()) for form, data in levels]
        parts.append(torch.from_numpy(rebuild.chain_values(tensor, len(row), blocks, row, col.double().numpy())))
    return torch.cat(parts)


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Sums of at most 27 products of order 1, in float32.
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("factors", ["F8_E4M3", "F16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (40,), (0,)])
def test_linear_is_linear(factors: str, bias: bool, shape: tuple[int, ...]) -> None:
    packed, stored = _make(factors=factors)
    _push(packed, stored)
    b = nn.Parameter(torch.randn(ROWS)) if bias else None
    layer = BitStackLinear(packed, b)
    x = torch.randn(*shape, COLUMNS, generator=torch.Generator().manual_seed(1))
    y = layer(x)
    assert y.dtype == torch.float32
    _close(y, functional.linear(x.double(), _dense(packed, stored), None if b is None else b.double()))


@pytest.mark.parametrize("own_columns", [False, True], ids=["shared", "per-chain"])
def test_linear_over_several_chains(own_columns: bool) -> None:
    packed, stored = _make(group_rows=16, own_columns=own_columns)  # the last group has five rows
    _push(packed, stored)
    x = torch.randn(4, COLUMNS)
    _close(BitStackLinear(packed)(x), x.double() @ _dense(packed, stored).T)
    _close(packed.dense(), _dense(packed, stored))


@pytest.mark.parametrize("own_columns", [False, True], ids=["shared", "per-chain"])
@pytest.mark.parametrize("group_rows", [ROWS, 16, 1])
def test_embedding_over_row_groups(group_rows: int, own_columns: bool) -> None:
    packed, stored = _make(group_rows=group_rows, own_columns=own_columns)
    _push(packed, stored)
    layer = BitStackEmbedding(packed, None, torch.float32)
    expected = _dense(packed, stored)
    for ids in (torch.tensor(3), torch.tensor([[36, 0, 15], [16, 16, 31]]), torch.arange(ROWS).flip(0)):
        got = layer(ids)
        assert got.shape == (*ids.shape, COLUMNS)
        _close(got, expected[ids])
    assert layer(torch.zeros(0, dtype=torch.int64)).shape == (0, COLUMNS)


@pytest.mark.parametrize("group_rows", [ROWS, 16])
def test_an_id_beyond_the_table(group_rows: int) -> None:
    packed, stored = _make(group_rows=group_rows)
    _push(packed, stored)
    with pytest.raises(IndexError):
        packed.rows(torch.tensor([ROWS if group_rows == ROWS else 48]), torch.float32)


def test_levels_come_and_go_exactly() -> None:
    packed, stored = _make(group_rows=16)
    x = torch.randn(3, COLUMNS)
    layer = BitStackLinear(packed)
    scales = 2 * (ROWS + COLUMNS)
    assert packed.nbytes == scales
    assert not layer(x).any()
    results, sizes = [layer(x)], [packed.nbytes]
    for level in range(3):
        for group in range(3):
            packed.push(group, *stored[group][level])
            results.append(layer(x))
            sizes.append(packed.nbytes)
            assert packed.nbytes == sizes[-2] + len(stored[group][level][1])
            # Only the rows of this group change.
            changed = (results[-1] != results[-2]).any(0).nonzero().flatten()
            assert set(changed.tolist()) == set(range(16 * group, min(16 * group + 16, ROWS)))
    assert [packed.levels(g) for g in range(3)] == [3, 3, 3]
    assert "levels=3, " in repr(layer)
    packed.pop(2)
    assert "levels=2-3, " in repr(layer)
    packed.push(2, *stored[2][2])
    for group in (2, 1, 0):
        assert torch.equal(layer(x), results.pop())
        assert packed.nbytes == sizes.pop()
        packed.pop(group)
    assert torch.equal(layer(x), results[-1])
    assert packed.nbytes == sizes[-1]


def _every_kind(group_rows: int) -> tuple[PackedTensor, Stored]:
    """Chains of a block of every kind behind the three sign blocks, none of them pushed yet."""
    packed, stored = _make(group_rows=group_rows)
    draw = np.random.default_rng(0)
    width = (COLUMNS + 7) // 8
    for group, levels in enumerate(stored):
        rows = min(group_rows, ROWS - group * group_rows)
        place = draw.permutation(rows * COLUMNS)[: 1 + rows]
        entries = sparse.join(rows, 0.5, place // COLUMNS, place % COLUMNS, draw.integers(0, 0x40, len(place)))
        u, v = (draw.standard_normal((size, 2)).astype(np.float16) for size in (rows, COLUMNS))
        signs = draw.integers(0, 256, (2, rows, width), np.uint8)
        signs[:, :, -1] &= 0xFF >> (-COLUMNS % 8)
        more = [
            ("plane", payload.join_plane(signs[0])),
            ("plane", payload.join_plane(signs[1])),
            ("sparse", entries),
            ("lowrank", payload.join_lowrank(u, v, None)),
        ]
        forms = {"lowrank": Form("lowrank", rank=2, factors="F16")}
        levels += [(forms.get(kind, Form(kind)), _bytes(data)) for kind, data in more]
    return packed, stored


@pytest.mark.parametrize("group_rows", [ROWS, 16])
def test_blocks_of_every_kind_come_and_go(group_rows: int) -> None:
    packed, stored = _every_kind(group_rows)
    layer, x = BitStackLinear(packed), torch.randn(3, COLUMNS)
    results, sizes = [layer(x)], [packed.nbytes]
    for level in range(7):
        for group, levels in enumerate(stored):
            packed.push(group, *levels[level])
            assert packed.nbytes == sizes[-1] + len(levels[level][1])
            results.append(layer(x))
            sizes.append(packed.nbytes)
        expected = _dense(packed, [levels[: level + 1] for levels in stored])
        _close(results[-1], x.double() @ expected.T)
        _close(packed.dense(), expected)
        ids = torch.tensor([36, 0, 15, 15, 16])
        _close(packed.rows(ids, torch.float32), expected[ids])
    # Built anew from what it holds, as when it is moved, it is the same.
    packed.apply(torch.clone)
    assert torch.equal(layer(x), results[-1])
    for _ in range(7):
        for group in reversed(range(len(stored))):
            assert torch.equal(layer(x), results.pop())
            assert packed.nbytes == sizes.pop()
            packed.pop(group)
    assert (len(results), packed.nbytes) == (1, sizes[0])


def test_dropping_a_plane_frees_its_signs_only() -> None:
    packed, stored = _every_kind(ROWS)
    for level in stored[0][:5]:
        packed.push(0, *level)
    *_, sign, one, two = packed.chains[0].blocks
    assert one.u is two.u is sign.u
    signs, factors = weakref.ref(two.signs), weakref.ref(sign.u)
    del two
    packed.pop(0)
    assert signs() is None
    assert factors() is one.u


def test_blocks_need_scales() -> None:
    _, stored = _make()
    bare = PackedTensor(Tensor("w", (ROWS, COLUMNS), "F32", ROWS, 0, 1))
    assert bare.nbytes == 0
    with pytest.raises(RuntimeError, match="w has no scales yet"):
        bare.push(0, *stored[0][0])


def _everything(packed: PackedTensor) -> list[torch.Tensor]:
    assert packed.row_scale is not None
    assert packed.col_scale is not None
    return [packed.row_scale, packed.col_scale, *(data for group in packed.groups for _, data in group.payloads)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own_columns", [False, True], ids=["shared", "per-chain"])
def test_another_type_changes_what_is_computed_but_not_what_is_stored(dtype: torch.dtype, own_columns: bool) -> None:
    packed, stored = _make(group_rows=16, own_columns=own_columns)
    _push(packed, stored)
    before = [t.clone() for t in _everything(packed)]
    size = packed.nbytes
    model = nn.Sequential(
        BitStackEmbedding(packed, None, torch.float32), BitStackLinear(packed, nn.Parameter(torch.ones(ROWS)))
    ).to(dtype)
    assert packed.nbytes == size
    for now, then in zip(_everything(packed), before, strict=True):
        assert now.dtype == then.dtype
        assert torch.equal(now, then)
    ids = torch.arange(ROWS)
    rows, out = model[0](ids), model(ids)
    assert rows.dtype == out.dtype == dtype
    assert next(model.parameters()).dtype == dtype
    expected = _dense(packed, stored)
    torch.testing.assert_close(rows.double(), expected, rtol=2.0**-8, atol=1e-4)


def test_moving_to_where_it_is_changes_nothing() -> None:
    packed, stored = _make()
    _push(packed, stored)
    layer = BitStackLinear(packed, nn.Parameter(torch.zeros(ROWS)))
    x = torch.randn(2, COLUMNS)
    before, addresses = layer(x), [t.data_ptr() for t in _everything(packed)]
    assert layer.to("cpu").cpu() is layer
    assert torch.equal(layer(x), before)
    assert [t.data_ptr() for t in _everything(packed)] == addresses


def test_moving_to_another_device_takes_everything_along() -> None:
    """`meta` stands for any other device: it is everywhere."""
    packed, stored = _make(group_rows=16)
    _push(packed, stored)
    size = packed.nbytes
    layer = BitStackLinear(packed, nn.Parameter(torch.zeros(ROWS))).to("meta")
    assert packed.device.type == "meta"
    assert all(t.is_meta for t in _everything(packed))
    assert all(c.device.type == "meta" for c in packed.chains)
    assert layer.bias is not None
    assert layer.bias.is_meta
    assert packed.nbytes == size


def test_a_copy_is_a_model_of_its_own() -> None:
    packed, stored = _make()
    _push(packed, stored)
    layer = BitStackLinear(packed)
    x = torch.randn(2, COLUMNS)
    before = layer(x)
    other = copy.deepcopy(layer)
    other.packed.pop(0)
    assert torch.equal(layer(x), before)
    assert not torch.equal(other(x), before)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_dense_weight_has_the_orientation_of_the_parameter(transposed: bool) -> None:
    packed, stored = _make(transposed=transposed)
    _push(packed, stored)
    expected = _dense(packed, stored)
    layer = BitStackLinear(packed)
    assert layer.weight.shape == ((COLUMNS, ROWS) if transposed else (ROWS, COLUMNS))
    _close(layer.weight, expected.T if transposed else expected)
    assert packed.dense(torch.bfloat16).dtype == torch.bfloat16
    # What it computes does not depend on how the model calls its weight.
    assert (layer.in_features, layer.out_features) == (COLUMNS, ROWS)
    x = torch.randn(2, COLUMNS)
    _close(layer(x), x.double() @ expected.T)


def test_an_embedding_and_a_head_share_one_tensor() -> None:
    packed, stored = _make(group_rows=16)
    model = nn.ModuleDict(
        {"embed": BitStackEmbedding(packed, None, torch.float32), "head": BitStackLinear(packed, None)}
    )
    _push(packed, stored)
    expected = _dense(packed, stored)
    ids = torch.tensor([1, 20, 36])
    _close(model["head"](model["embed"](ids)), expected[ids] @ expected.T)
    # Moved once for each of them, it still is one tensor with the same bytes.
    before = [t.clone() for t in _everything(packed)]
    model.to(torch.bfloat16)
    assert model["embed"].packed is model["head"].packed
    assert all(torch.equal(a, b) for a, b in zip(_everything(packed), before, strict=True))


def test_nothing_of_a_packed_weight_is_in_the_state() -> None:
    packed, stored = _make()
    _push(packed, stored)
    assert list(BitStackLinear(packed, nn.Parameter(torch.zeros(ROWS))).state_dict()) == ["bias"]
    assert list(BitStackEmbedding(packed, 3, torch.float32).state_dict()) == []
    assert bitstack.BitStackEmbedding is BitStackEmbedding
