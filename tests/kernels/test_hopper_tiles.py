"""Kernels that make tiles of W, for compute capability 9.0: on such a GPU, and elsewhere by a C++ compiler."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bitstack.kernels import Chain, Table, hopper_matrix, hopper_rebuild, hopper_several
from bitstack.kernels.cuda_driver import Kernel
from bitstack.kernels.reference import dense
from tests.kernels import emulator
from tests.kernels.conftest import HOPPER, absolute

SPARSE = [("sparse", 0.02), ("sparse", 0.001)]
EVERY = [(8, True), "plane", "plane", ("lowrank", 5, True), (3, False), "plane", ("lowrank", 2, False)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Kernel]:
    """Kernels by part of the source, name, name of the arguments, and what is open."""
    emulator.needed()

    @cache
    def made(part: str, kernel: str, arguments: str, dtype: torch.dtype, tokens: int = 0) -> Kernel:
        source = hopper_matrix.source(part, dtype, **({"TOKENS": tokens} if tokens else {}))
        folder = tmp_path_factory.mktemp("emulated")
        return emulator.Emulated(emulator.compile_kernel(source, kernel, arguments, folder))

    return made


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=HOPPER)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where matrices lie that the kernels are for."""
    if request.param == "cuda":
        return "cuda"
    made = request.getfixturevalue("emulated")
    names = {"rebuild": "RebuildArgs", "multiply_several": "SeveralArgs", "add_up": "SeveralArgs"}
    for module in (hopper_rebuild, hopper_several):
        monkeypatch.setattr(module, "multiprocessors", lambda _: 3)
        monkeypatch.setattr(
            module,
            "kernel_for",
            lambda part, name, dtype, tokens, _: made(part, name, names[name], dtype, tokens),
        )
    emulator.make_tables(monkeypatch)
    return "cpu"


def _check(chain: Chain, bound: Any, dtype: torch.dtype) -> None:
    out = torch.full((chain.rows, chain.columns), float("nan"), dtype=dtype, device=chain.device)
    hopper_rebuild.rebuild(Table(chain), out)
    exact = dense(chain)
    error, limit = (out.double() - exact).abs(), bound(chain, exact, dtype)
    assert (error <= limit).all(), f"largest error {error.max():.3g}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(1, 128), (128, 121), (129, 250), (130, 384), (900, 640)])
def test_shapes_kinds_and_types(make_chain, bound, device, m, n, dtype):
    _check(make_chain(m, n, [*EVERY, *SPARSE], device=device, garbage=True), bound, dtype)
    _check(make_chain(m, n, EVERY[:2], device=device, scales=torch.bfloat16), bound, dtype)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4, 7, 8, 9, 15, 16, 17, 32, 33])
def test_ranks(make_chain, bound, device, rank, fp8):
    _check(make_chain(40, 128, [(rank, fp8)], device=device), bound, torch.bfloat16)


@pytest.mark.parametrize("count", [0, 3, 4, 5, 9])
def test_numbers_of_blocks(make_chain, bound, device, count):
    _check(make_chain(33, 128, [(4, True)] * count, device=device), bound, torch.float16)


def test_parts_of_the_rows(make_chain, bound, device):
    chain = make_chain(300, 128, [(16, True), "plane", *SPARSE], device=device)
    exact = dense(chain)
    limit = bound(chain, exact, torch.bfloat16)
    made = Table(chain)
    for start, stop in ((0, 128), (100, 101), (150, 300)):
        around = torch.full((stop - start + 2, 128), float("nan"), dtype=torch.bfloat16, device=device)
        hopper_rebuild.rebuild(made, around[1:-1], start, stop)
        assert ((around[1:-1].double() - exact[start:stop]).abs() <= limit[start:stop]).all()
        assert around[[0, -1]].isnan().all()


def test_several_chains(make_chain, bound, device):
    chains = [make_chain(m, 128, [(8, True), "plane", *SPARSE], device=device, seed=m) for m in (150, 150, 40)]
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


@pytest.mark.parametrize("power", [-100, -30, 30, 100])
def test_rows_of_any_size(make_chain, bound, device, power):
    """Which half precision does not hold as they are."""
    chain = make_chain(40, 256, [(16, True), "plane"], device=device)
    scale = chain.blocks[0].scale
    spread = torch.logspace(0, power, len(scale), 2.0).to(scale)
    for block in chain.blocks:
        object.__setattr__(block, "scale", scale * spread)
    chain.row_scale.copy_(chain.row_scale * 2.0 ** -(power if power > 0 else 0))
    _check(chain, bound, torch.bfloat16)


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


def _check_products(
    chain: Chain, bound: Any, tokens: int, dtype: torch.dtype, bias: torch.Tensor | None = None
) -> None:
    x = torch.randn(tokens, chain.columns, generator=torch.Generator().manual_seed(1)).to(chain.device, dtype)
    exact = x.double() @ dense(chain).T
    limit = bound(chain, exact, dtype, x)
    if not x.is_cuda:  # what the bound adds there: W is rounded to the type of x
        limit = limit + 2 * torch.finfo(dtype).eps * (x.double().abs() @ absolute(chain).T)
    if bias is not None:
        exact = exact + bias.double()
        limit = limit + torch.finfo(dtype).eps * exact.abs() + 1e-6
    shape = (2 if x.is_cuda else 1, tokens, chain.rows)  # on a CPU threads take turns, always the same ones
    outs = torch.full(shape, float("nan"), dtype=dtype, device=chain.device)
    for out in outs:
        hopper_several.multiply_several(x, Table(chain), bias, out)
    error = (outs[0].double() - exact).abs()
    assert (error <= limit).all(), f"{(error / limit).max():.3g} times what it may be"
    assert torch.equal(outs[0], outs[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 16, 19])
def test_products(make_chain, bound, device, tokens, dtype):
    chain = make_chain(130, 250, [*EVERY, *SPARSE], device=device, garbage=True)
    _check_products(chain, bound, tokens, dtype)


@pytest.mark.parametrize(("m", "n"), [(1, 128), (128, 121), (257, 128), (40, 896)])
def test_products_of_shapes(make_chain, bound, device, m, n):
    for scales in (torch.float32, torch.bfloat16):
        chain = make_chain(m, n, [(8, True), "plane", ("sparse", 0.01)], device=device, scales=scales)
        _check_products(chain, bound, 5, torch.bfloat16)
        _check_products(chain, bound, 5, torch.bfloat16, torch.randn(m).to(device, scales))
        _check_products(chain, bound, 5, torch.bfloat16, torch.randn(m).to(device, torch.float64))


@pytest.mark.parametrize("blocks", [[], [("sparse", 0.1)], [(4, True)] * 9])
def test_products_with_few_and_many_blocks(make_chain, bound, device, blocks):
    _check_products(make_chain(33, 256, blocks, device=device), bound, 4, torch.float16)


def test_products_of_several_chains(make_chain, bound, device):
    kinds = ([(8, True), "plane"], [("sparse", 0.1), (3, False)], [])
    chains = [make_chain(m, 256, kind, device=device, seed=m) for m, kind in zip((150, 150, 40), kinds, strict=True)]
    scales = {
        "row_scale": torch.cat([c.row_scale for c in chains]),
        "col_scale": torch.stack([c.col_scale for c in chains]),
    }
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    out = torch.full((6, 340), float("nan"), dtype=torch.bfloat16, device=device)
    hopper_several.multiply_several(x, Table(chains, **scales), None, out)
    for chain, part in zip(chains, out.split([150, 150, 40], 1), strict=True):
        exact = x.double() @ dense(chain).T
        limit = bound(chain, exact, torch.bfloat16, x) + 2 * torch.finfo(torch.bfloat16).eps * (
            x.double().abs() @ absolute(chain).T
        )
        assert ((part.double() - exact).abs() <= limit).all()


def test_what_is_no_number_stays_with_its_token(make_chain, device):
    """And what lies behind the last column or token is not read as numbers."""
    chain = make_chain(20, 121, [(4, True), ("sparse", 0.5)], device=device)
    space = torch.full((5, 121), float("nan"), dtype=torch.bfloat16, device=device)
    space[:3] = torch.randn(3, 121).to(device)
    space[1, 7] = float("inf")
    out = torch.empty(3, 20, dtype=torch.bfloat16, device=device)
    hopper_several.multiply_several(space[:3], Table(chain), None, out)
    assert out[[0, 2]].isfinite().all()
    assert not out[1].isfinite().any()


def test_columns_are_shared_out_so_that_every_multiprocessor_works():
    assert hopper_matrix.share_out(4096, 112, 132, 4, 1024)[0] == 2  # 14336 rows: as many programs as run at once
    assert hopper_matrix.share_out(4096, 32, 132, 4, 1024)[0] == 8
    assert hopper_matrix.share_out(14336, 32, 132, 4, 1024)[0] == 8
    assert hopper_matrix.share_out(128, 1, 132, 4, 1024)[0] == 1


@pytest.mark.parametrize("capacity", [1, 8, hopper_matrix.HELD])
def test_what_a_program_holds_has_room(capacity):
    for columns in (128, 4096, 65536):
        for tile_bytes in (1024, 16 * 576):
            parts, shared = hopper_matrix.share_out(columns, 32, 132, capacity, tile_bytes)
            assert 1 <= parts <= -(-columns // hopper_matrix.TILE)
            assert shared <= hopper_matrix.SHARED_MOST


def test_more_segments_than_a_program_holds_are_left_to_other_kernels(make_chain, device):
    for count, taken in ((hopper_matrix.HELD, True), (hopper_matrix.HELD + 1, False)):
        made = Table(make_chain(4, 128, [(1, True)] * count, device=device))
        assert hopper_matrix.takes(torch.float16, made) == taken


def test_the_emulator_finds_assembly_that_it_does_not_know(tmp_path: Path):
    source = '__device__ inline void other() {\n    asm("nop;");\n}\n'
    with pytest.raises(ValueError, match="without a counterpart"):
        emulator.compile_kernel(source, "rebuild", "RebuildArgs", tmp_path)
