"""W as compute capability 9.0 makes it: on such a GPU, and everywhere by a compiler of C++ and threads."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bitstack.kernels import Chain, Table, hopper_rebuild
from bitstack.kernels.cuda_driver import Kernel
from bitstack.kernels.reference import dense
from tests.kernels import emulator
from tests.kernels.conftest import HOPPER

Rebuild = Callable[..., None]
EVERY = [(8, True), "plane", "plane", ("lowrank", 5, True), (3, False), "plane", ("lowrank", 2, False)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Any]:
    """A kernel whose launches are emulated, for bfloat16 or not."""
    if emulator.compiler() is None:
        pytest.skip("no g++, which would run the kernel without a GPU")

    @cache
    def made(bfloat: bool) -> Any:
        folder = tmp_path_factory.mktemp("emulated")
        source = hopper_rebuild.source(bfloat=bfloat)
        run = emulator.compile_kernel(source, "rebuild", "RebuildArgs", hopper_rebuild.THREADS, folder)

        class Emulated(Kernel):
            def __init__(self) -> None:
                pass

            def launch(self, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure) -> None:
                assert threads == hopper_rebuild.THREADS
                run(ctypes.byref(arguments), *grid)

        return Emulated()

    return made


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=HOPPER)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where matrices lie that the kernel is for."""
    if request.param == "cuda":
        return "cuda"
    made = request.getfixturevalue("emulated")
    monkeypatch.setattr(hopper_rebuild, "kernel_for", lambda dtype, device: made(dtype == torch.bfloat16))
    return "cpu"


def _check(chain: Chain, bound: Any, dtype: torch.dtype) -> None:
    out = torch.full((chain.rows, chain.columns), float("nan"), dtype=dtype, device=chain.device)
    hopper_rebuild.rebuild(Table(chain), out)
    exact = dense(chain)
    error, limit = (out.double() - exact).abs(), bound(chain, exact, dtype)
    assert (error <= limit).all(), f"largest error {error.max():.3g}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(1, 128), (128, 121), (129, 250), (130, 384)])
def test_shapes_kinds_and_types(make_chain, bound, device, m, n, dtype):
    _check(make_chain(m, n, EVERY, device=device, garbage=True), bound, dtype)
    _check(make_chain(m, n, EVERY[:2], device=device, scales=torch.bfloat16), bound, dtype)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 7, 8, 9, 15, 16, 17, 32, 33])
def test_ranks(make_chain, bound, device, rank, fp8):
    _check(make_chain(40, 128, [(rank, fp8)], device=device), bound, torch.bfloat16)


@pytest.mark.parametrize("count", [0, 3, 4, 5, 9])
def test_numbers_of_blocks(make_chain, bound, device, count):
    _check(make_chain(33, 128, [(4, True)] * count, device=device), bound, torch.float16)


def test_parts_of_the_rows(make_chain, bound, device):
    chain = make_chain(300, 128, [(16, True), "plane"], device=device)
    exact = dense(chain)
    limit = bound(chain, exact, torch.bfloat16)
    table = Table(chain)
    for start, stop in ((0, 128), (100, 101), (150, 300)):
        around = torch.full((stop - start + 2, 128), float("nan"), dtype=torch.bfloat16, device=device)
        hopper_rebuild.rebuild(table, around[1:-1], start, stop)
        assert ((around[1:-1].double() - exact[start:stop]).abs() <= limit[start:stop]).all()
        assert around[[0, -1]].isnan().all()


def test_several_chains(make_chain, bound, device):
    chains = [make_chain(m, 128, [(8, True), "plane"], device=device, seed=m) for m in (150, 150, 40)]
    chains[2] = make_chain(40, 128, [], device=device)
    scales = {
        "row_scale": torch.cat([c.row_scale for c in chains]),
        "col_scale": torch.stack([c.col_scale for c in chains]),
    }
    out = torch.full((340, 128), float("nan"), dtype=torch.bfloat16, device=device)
    hopper_rebuild.rebuild(Table(chains, **scales), out)
    for chain, part in zip(chains, out.split([150, 150, 40]), strict=True):
        exact = dense(chain)
        assert ((part.double() - exact).abs() <= bound(chain, exact, torch.bfloat16)).all()


def test_factors_that_lie_at_odd_addresses(make_chain, bound, device):
    """Which are read one by one."""
    chain = make_chain(40, 128, [(16, True), (16, False)], device=device)
    for block in chain.blocks:
        for name in ("u", "v"):
            old = getattr(block, name)
            size = old.element_size()
            space = torch.empty(old.nbytes + size, dtype=torch.uint8, device=device)
            moved = space[size:].view(old.dtype).view(old.shape)
            object.__setattr__(block, name, moved.copy_(old))
            assert moved.data_ptr() % 16
    _check(chain, bound, torch.bfloat16)


def test_the_emulator_finds_assembly_that_it_does_not_know(tmp_path: Path):
    source = '__device__ inline void other() {\n    asm("nop;");\n}\n'
    with pytest.raises(ValueError, match="without a counterpart"):
        emulator.compile_kernel(source, "rebuild", "RebuildArgs", 32, tmp_path)
