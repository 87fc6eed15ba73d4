"""Matrices and statistics that are degenerate: everything stays finite, and the chains still approach the matrix."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
from bitstack.collect import LinearStatistics
from bitstack.decompose import Options, chain
from bitstack.measure import LinearMeasure

ROWS, COLUMNS, LEVELS = 40, 48, 8
_GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(ROWS, COLUMNS, generator=_GENERATOR)
INPUTS = torch.randn(4 * COLUMNS, COLUMNS, generator=_GENERATOR)
GRADIENT = torch.rand(ROWS, generator=_GENERATOR).double() + 0.1


def _hessian(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def _dead(columns: slice) -> torch.Tensor:
    x = INPUTS.clone()
    x[:, columns] = 0
    return _hessian(x)


def _rows(change: Callable[[torch.Tensor], None]) -> torch.Tensor:
    weight = WEIGHT.clone()
    change(weight)
    return weight


def _constant(weight: torch.Tensor) -> None:
    weight[3:9] = 0.25


def _zero(weight: torch.Tensor) -> None:
    weight[:5] = 0


def _outlier(weight: torch.Tensor) -> None:
    weight[7, 7] = 1e4


FULL = _hessian(INPUTS)
_LOUD = torch.ones(COLUMNS)
_LOUD[5] = 1e6
#: weight, Hessian, squared gradient
CASES: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {
    "nothing wrong": (WEIGHT, FULL, GRADIENT),
    "dead channels": (WEIGHT, _dead(slice(0, 9)), GRADIENT),
    "one live channel": (WEIGHT, _dead(slice(1, None)), GRADIENT),
    "no live channel": (WEIGHT, torch.zeros(COLUMNS, COLUMNS), GRADIENT),
    "few tokens": (WEIGHT, _hessian(INPUTS[:3]), GRADIENT),
    "one token": (WEIGHT, _hessian(INPUTS[:1]), GRADIENT),
    "tiny inputs": (WEIGHT, FULL * 1e-35, GRADIENT),
    "huge inputs": (WEIGHT, FULL * 1e30, GRADIENT),
    "one huge channel": (WEIGHT, _hessian(INPUTS * _LOUD), GRADIENT),
    "no gradient": (WEIGHT, FULL, torch.zeros(ROWS).double()),
    "tiny gradients": (WEIGHT, FULL, GRADIENT * 1e-300),
    "rows without gradient": (WEIGHT, FULL, torch.where(torch.arange(ROWS) < 9, 0.0, GRADIENT)),
    "constant rows": (_rows(_constant), FULL, GRADIENT),
    "zero rows": (_rows(_zero), FULL, GRADIENT),
    "constant matrix": (torch.full_like(WEIGHT, -0.5), FULL, GRADIENT),
    "zero matrix": (torch.zeros_like(WEIGHT), FULL, GRADIENT),
    "an outlier": (_rows(_outlier), FULL, GRADIENT),
    "tiny weights": (WEIGHT * 1e-30, FULL, GRADIENT),
    "huge weights": (WEIGHT * 1e15, FULL, GRADIENT),
}


@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_chain_of_a_degenerate_matrix(name: str, walk: bool) -> None:
    weight, hessian, output = CASES[name]
    measure = LinearMeasure(LinearStatistics(hessian, output))
    scales, inverse = measure.scales(), measure.inverse()
    assert torch.isfinite(inverse).all()
    for scale in (scales.row, scales.col):
        assert (torch.isfinite(scale) & (scale > 0)).all()
    rest = weight.clone()
    losses = [measure.loss(rest, 0)]
    options = Options(ranks=(8, 8, 4, 4, 4, 2, 2, 2), walk=walk)
    for level in chain(weight.clone(), scales, options, seed=0, inverse=inverse):
        assert torch.isfinite(level.values).all()
        rest -= level.values
        losses.append(measure.loss(rest, 0))
    assert len(losses) == LEVELS + 1
    assert all(math.isfinite(loss) and loss >= 0 for loss in losses)
    if losses[0] > 0:
        assert losses[-1] < 0.1 * losses[0]
    else:  # nothing counts, or all of it is too small to be squared: every element counts alike
        assert rest.norm() <= 0.3 * weight.norm()


@pytest.mark.parametrize("kind", ["llama-untied", "mixtral"])
def test_a_model_with_dead_channels(
    make_model: Callable[..., Any], save_model: Callable[..., Path], small: bitstack.Recipe, tmp_path: Path, kind: str
) -> None:
    """A norm that silences channels, rows that are constant, rows that are zero: it packs, loads and runs."""
    model = make_model(kind)
    layer = model.model.layers[0]
    layer.post_attention_layernorm.weight[:20] = 0
    layer.self_attn.q_proj.weight[:4] = 0.125
    layer.self_attn.v_proj.weight[:4] = 0
    save_model(model, tmp_path / "model")
    # Fewer tokens than columns: every Hessian is of deficient rank.
    bitstack.pack(tmp_path / "model", tmp_path / "out.bstk", recipe=replace(small, calib_tokens=32))
    ids = torch.arange(20)[None]
    wanted = model(ids).logits
    loaded = bitstack.load(tmp_path / "out.bstk", "100%", "cpu")
    full = loaded(ids).logits
    assert float((full - wanted).norm() / wanted.norm()) < 0.3
    for budget in ("60%", "40%"):
        loaded.bitstack.resize(budget)
        assert torch.isfinite(loaded(ids).logits).all()
    loaded.bitstack.close()
