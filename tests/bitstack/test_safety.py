"""Matrices and statistics that are degenerate: everything stays finite, and the chains still approach the matrix."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstack
from bitstack.decompose import Problem, Search, decompose
from bitstack.design import Judge, parse_design
from bitstack.measure import LinearMeasure, linear_scales
from bsformat import Tensor, rebuild

ROWS, COLUMNS = 40, 48
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
    scales = linear_scales(hessian, output)
    for scale in (scales.row, scales.col):
        assert (torch.isfinite(scale) & (scale > 0)).all()
    measure = LinearMeasure(hessian[None], output[None])
    designs = tuple(parse_design(text) for text in ("s1 b3", "b3"))
    search = Search(designs, parse_design("b2 b2"), (2, 8), (0.85, 1.0), ("F8_E4M3",), Judge((1.0, 1e-3), 0.6), walk)
    (chain,) = decompose(Problem.of([weight.clone()], [scales], measure, 0), search)
    assert len(chain.losses) == len(chain.sizes) + 1 in (8, 9)
    assert all(math.isfinite(loss) and loss >= 0 for loss in chain.losses)
    row, col = (s.double().numpy() for s in (scales.row, scales.col))
    tensor = Tensor("w", (ROWS, COLUMNS), "F32", ROWS, 0, 1)
    rest = weight.double().numpy() - rebuild.chain_values(tensor, ROWS, list(chain.blocks()), row, col)
    assert np.isfinite(rest).all()
    if chain.losses[0] > 0:
        assert chain.losses[-1] < 0.1 * chain.losses[0]
    else:  # nothing counts, or all of it is too small to be squared: every element counts alike
        assert np.linalg.norm(rest) <= 0.3 * np.linalg.norm(weight.double().numpy())


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
    bitstack.pack(tmp_path / "model", tmp_path / "out.bstk", recipe=small.changed({"calib.tokens": 32}))
    ids = torch.arange(20)[None]
    wanted = model(ids).logits
    loaded = bitstack.load(tmp_path / "out.bstk", "100%", "cpu")
    full = loaded(ids).logits
    assert float((full - wanted).norm() / wanted.norm()) < 0.5  # so few tokens say little of what the experts are given
    for budget in ("60%", "40%"):
        loaded.bitstack.resize(budget)
        assert torch.isfinite(loaded(ids).logits).all()
    loaded.bitstack.close()
