"""The gradient of a product to its input, against float64, and what is held while it is computed."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bitstack import kernels
from bitstack.kernels import gradient
from bitstack.kernels.reference import rebuild

LEVELS = [(3, True), "plane", (1, False)]
#: Of |dy|·|W|: what the types round away, in W, in the products of a tile, and at the end.
BOUNDS = {torch.float32: 2.0**-18, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


class Largest(TorchDispatchMode):
    """Notes the most elements of any floating tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.is_meta:
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.itemsize)
        return result


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("size", "tile"), [((67, 29), 700), ((67, 29), 1 << 19), ((1, 9), 1), ((40, 1), 13)])
def test_it_is_dy_times_w(make_chain, case, dtype, tile, size, monkeypatch) -> None:
    backend, device = case
    monkeypatch.setitem(gradient.TILE, torch.device(device).type, tile)
    rows, columns = size
    chain = make_chain(rows, columns, LEVELS, device=device)
    exact = torch.empty(rows, columns, dtype=torch.float64, device=device)
    rebuild(chain, exact)
    dy = torch.randn(2, 3, rows, device=device).to(dtype)
    dx = kernels.input_gradient(dy, chain, backend=backend)
    assert dx.dtype == dtype
    assert dx.shape == (2, 3, columns)
    wrong = (dx.double() - dy.double() @ exact).abs()
    assert (wrong <= BOUNDS[dtype] * (dy.double().abs() @ exact.abs()) + 1e-6).all()


def test_of_nothing_is_nothing_and_of_other_shapes_refused(make_chain) -> None:
    chain = make_chain(8, 5, LEVELS)
    assert kernels.input_gradient(torch.empty(0, 8), chain).shape == (0, 5)
    with pytest.raises(ValueError, match=r"dy must be \[..., 8\]"):
        kernels.input_gradient(torch.empty(2, 5), chain)


@pytest.mark.parametrize("backend", kernels.available_backends("cpu"))
def test_w_is_never_there_as_a_whole(make_chain, monkeypatch, backend) -> None:
    if backend in ("triton", "reference"):
        pytest.skip("runs on the CPU for tests alone")
    monkeypatch.setitem(gradient.TILE, "cpu", 16 * 64)
    chain = make_chain(256, 64, LEVELS)
    dy = torch.randn(2, 256)
    with Largest() as largest:
        kernels.input_gradient(dy, chain, backend=backend)
    assert 0 < largest.elements <= 2 * 16 * 64
