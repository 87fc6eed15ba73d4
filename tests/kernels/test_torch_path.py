"""What is particular to the PyTorch path: its tiles, its table of sums, and what it holds while it works."""

import pytest
import torch

from bitstack.kernels import linear, rebuild, torch_path
from bitstack.kernels.reference import dense

MIXED = [(8, True), (3, False), (1, True)]


@pytest.mark.parametrize(("m", "n"), [(13, 77), (64, 64), (131, 9)])
@pytest.mark.parametrize("limits", [(1, 1, 1), (700, 8192, 50)])
def test_every_split_of_the_work_gives_the_same_result(make_chain, bound, monkeypatch, m, n, limits):
    for name, value in zip(("TILE", "TABLE", "INDICES"), limits, strict=True):
        monkeypatch.setattr(torch_path, name, value)
    chain = make_chain(m, n, MIXED, garbage=True)
    exact = dense(chain)
    for dtype in (torch.float32, torch.bfloat16):
        assert (
            (rebuild(chain, dtype=dtype, backend="torch").double() - exact).abs() <= bound(chain, exact, dtype)
        ).all()
        for table_rows in (1, m + 1):
            monkeypatch.setattr(torch_path, "TABLE_ROWS", table_rows)
            for tokens in (1, 3):
                x = torch.randn(tokens, n).to(dtype)
                y = x.double() @ exact.T
                assert ((linear(x, chain, backend="torch").double() - y).abs() <= bound(chain, y, dtype, x)).all()


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_the_workspace_is_bounded(make_chain, tokens):
    """The largest tensor made on the way is far smaller than W (16 MiB) would be."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes())
            return result

    chain = make_chain(2048, 2048, [(8, True), (3, True)])
    x = torch.randn(tokens, 2048)
    with Watch():
        linear(x, chain, backend="torch")
    assert 0 < largest <= 4 << 20
