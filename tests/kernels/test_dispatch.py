import importlib.util
import pkgutil

import pytest
import torch

from bitstack import kernels
from bitstack.kernels import available_backends, backends, linear, rebuild, rows

NEEDS_NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def test_available_backends_depend_on_the_device_and_the_environment(monkeypatch):
    monkeypatch.setattr(backends, "_numba_imports", lambda: True)
    monkeypatch.setattr(backends, "has_bit_products", lambda device: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available_backends("cpu") == ("triton", "numba", "torch", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert available_backends(torch.device("cpu")) == ("numba", "torch", "reference")
    monkeypatch.setattr(backends, "_numba_imports", lambda: False)
    assert available_backends(torch.device("cpu")) == ("torch", "reference")
    assert available_backends("cuda:1") == ("triton", "torch", "reference")
    monkeypatch.setattr(backends, "_triton_imports", lambda: False)
    assert available_backends("cuda") == ("torch", "reference")


@pytest.mark.parametrize("name", [pytest.param("numba", marks=NEEDS_NUMBA), "torch"])
def test_auto_on_the_cpu_takes_numba_where_it_is_else_torch(make_chain, monkeypatch, name):
    monkeypatch.setattr(backends, "_numba_imports", lambda: name == "numba")
    chain, x = make_chain(131, 13, [(3, True)]), torch.randn(1, 13)
    asked = []
    load = backends._load
    monkeypatch.setattr(backends, "_load", lambda backend: asked.append(backend) or load(backend))
    linear(x, chain)
    rebuild(chain)
    assert asked == [name, name]


def test_numba_is_refused_elsewhere(make_chain):
    with pytest.raises(ValueError, match="backend 'numba' does not run on meta; there: torch, reference"):
        rebuild(make_chain(3, 5, [(2, True)], device="meta"), backend="numba")


def test_a_backend_for_the_whole_process(make_chain, monkeypatch):
    chain, x = make_chain(131, 13, [(3, True)]), torch.randn(1, 13)
    asked = []
    load = backends._load
    monkeypatch.setattr(backends, "_load", lambda backend: asked.append(backend) or load(backend))
    monkeypatch.setenv("BSTK_KERNELS", "torch")
    linear(x, chain)
    kernels.set_backend("reference")
    try:
        linear(x, chain)
        linear(x, chain, backend="torch")
    finally:
        kernels.set_backend(None)
    linear(x, chain)
    assert asked == ["torch", "reference", "torch", "torch"]
    monkeypatch.setenv("BSTK_KERNELS", "auto")
    linear(x, chain)
    monkeypatch.setenv("BSTK_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"unknown backend 'cuda' \(by the environment variable BSTK_KERNELS\)"):
        linear(x, chain)
    monkeypatch.setenv("BSTK_KERNELS", "hopper")
    with pytest.raises(ValueError, match=r"backend 'hopper' \(by the .* BSTK_KERNELS\) does not run on cpu"):
        linear(x, chain)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        kernels.set_backend("cuda")


def test_an_unknown_backend_is_refused_with_the_names(make_chain):
    chain = make_chain(3, 5, [(2, True)])
    for call in (
        lambda: linear(torch.ones(5), chain, backend="cuda"),
        lambda: rebuild(chain, backend="cuda"),
        lambda: rows(chain, torch.tensor([0]), backend="cuda"),
        lambda: rows(chain, torch.tensor([], dtype=torch.int64), backend="cuda"),
    ):
        with pytest.raises(
            ValueError, match="unknown backend 'cuda'; known: auto, hopper, triton, numba, torch, reference"
        ):
            call()


def test_triton_on_the_cpu_is_refused_unless_interpreted(make_chain, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"does not run on cpu; there: (numba, )?torch, reference"):
        rebuild(make_chain(3, 5, [(2, True)]), backend="triton")


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (torch.ones(2, 5).double(), None, "x must be float32"),
        (torch.ones(2, 4), None, r"x must be \[..., 5\]"),
        (torch.tensor(1.0), None, r"x must be \[..., 5\]"),
        (torch.ones(2, 5, device="meta"), None, "x is on meta"),
        (torch.ones(2, 5), torch.ones(2, 4), "out must be"),
        (torch.ones(2, 5), torch.ones(2, 3).half(), "out must be"),
        (torch.ones(2, 5), torch.ones(3, 2).T, "out must be"),
        (torch.ones(2, 5), torch.ones(2, 3, device="meta"), "out must be"),
    ],
)
def test_linear_refuses(make_chain, x, out, message):
    with pytest.raises(ValueError, match=message):
        linear(x, make_chain(3, 5, [(2, True)]), out=out)


def test_rebuild_and_rows_refuse(make_chain):
    chain = make_chain(3, 5, [(2, True)])
    with pytest.raises(ValueError, match="dtype must be"):
        rebuild(chain, dtype=torch.float64)
    with pytest.raises(ValueError, match="out must be"):
        rebuild(chain, out=torch.ones(5, 3))
    for ids in (torch.tensor([1], dtype=torch.int32), torch.tensor([[1]]), torch.tensor(1)):
        with pytest.raises(ValueError, match="ids must be int64"):
            rows(chain, ids)
    with pytest.raises(IndexError):
        rows(chain, torch.tensor([3]))


def test_no_submodule_has_the_name_of_an_operation():
    """Importing the submodule, which may happen late, would hide the operation behind it."""
    modules = {module.name for module in pkgutil.iter_modules(kernels.__path__)}
    assert {"dispatch", "decode"} <= modules
    assert modules.isdisjoint(kernels.__all__)


def test_the_names_of_the_operations_survive_loading_every_backend(make_chain, case):
    backend, device = case
    rebuild(make_chain(3, 5, [(2, True)], device=device), backend=backend)
    assert all(callable(getattr(kernels, name)) for name in kernels.__all__ if name != "BACKENDS")
