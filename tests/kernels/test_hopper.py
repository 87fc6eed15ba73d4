"""Products of single bits, on GPUs that have them: where rows of signs are a multiple of 16 bytes, and nowhere else."""

import pytest
import torch

from bitstack.kernels import Chain, Room, SignBlock, Table, cuda_driver, linear
from bitstack.kernels.reference import dense

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no CUDA device of compute capability 9.0",
    ),
]
EVERY = [
    (8, True),
    "plane",
    "plane",
    ("sparse", 0.02),
    ("lowrank", 5, True),
    (3, False),
    "plane",
    ("lowrank", 2, False),
]


def _check(chain, bound, tokens, dtype, bias=None):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, chain.columns, generator=g).to("cuda", dtype)
    exact = x.double() @ dense(chain).T
    limit = bound(chain, exact, dtype, x)
    if bias is not None:
        exact = exact + bias.double()
        limit = limit + torch.finfo(dtype).eps * exact.abs() + 1e-6
    table = Table(chain)
    assert table.maps is not None
    out = torch.full((tokens, chain.rows), float("nan"), device="cuda", dtype=dtype)
    linear(x, table, bias=bias, out=out, backend="hopper")
    error = (out.double() - exact).abs()
    assert (error <= limit).all(), f"{(error / limit).max():.3g} times what it may be"
    assert torch.equal(linear(x, table, bias=bias, backend="hopper"), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "n"), [(1, 128), (63, 256), (64, 1024), (65, 1152), (131, 2048), (1000, 2176), (257, 4096), (70, 14336)]
)
def test_shapes(make_chain, bound, m, n, dtype):
    for tokens in (1, 2, 3, 4, 5, 33):
        _check(make_chain(m, n, EVERY, device="cuda", garbage=True), bound, tokens, dtype)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 7, 8, 9, 15, 16, 17, 33, 65])
def test_ranks(make_chain, bound, rank, fp8):
    for blocks in ([(rank, fp8)], [(rank, fp8), "plane"], [("lowrank", rank, fp8)], [(3, True), (rank, fp8)]):
        _check(make_chain(100, 2304, blocks, device="cuda"), bound, 2, torch.bfloat16)
        _check(make_chain(100, 2304, blocks, device="cuda"), bound, 1, torch.float16)


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [("sparse", 0.1)],
        [("sparse", 0.0)],
        [("sparse", 0.3)] * 2,
        [("lowrank", 3, False)],
        [(2, False), *["plane"] * 15],
        [(4, False)] * 40,
    ],
    ids=["none", "sparse", "no entries", "two sparse", "lowrank", "planes", "more than are kept in shared memory"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_kinds(make_chain, bound, blocks, bias):
    chain = make_chain(1031, 640, blocks, device="cuda")
    added = torch.randn(1031, device="cuda").bfloat16() if bias else None
    for tokens in (1, 2):
        _check(chain, bound, tokens, torch.bfloat16, added)


@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16])
def test_types_of_the_scale_vectors(make_chain, bound, scales):
    _check(make_chain(300, 2048, EVERY, device="cuda", scales=scales), bound, 1, torch.bfloat16)


def test_many_chains_are_one_matrix(make_chain, bound):
    chains = [make_chain(200, 2048, EVERY[: 1 + s % 8], device="cuda", seed=s) for s in range(10)]
    chains.append(make_chain(77, 2048, EVERY, device="cuda", seed=99))
    table = Table(
        chains,
        row_scale=torch.cat([c.row_scale for c in chains]),
        col_scale=torch.stack([c.col_scale for c in chains]),
    )
    x = torch.randn(2, 2048, generator=torch.Generator().manual_seed(2)).to("cuda", torch.bfloat16)
    wanted = [x.double() @ dense(c).T for c in chains]
    limits = [bound(c, w, torch.bfloat16, x) for c, w in zip(chains, wanted, strict=True)]
    got = linear(x, table, backend="hopper")
    assert ((got.double() - torch.cat(wanted, 1)).abs() <= torch.cat(limits, 1)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_shows_in_every_row(make_chain, bad):
    chain = make_chain(100, 2304, [(3, False)], device="cuda")
    for column in (0, 2303):
        x = torch.ones(2, 2304, device="cuda", dtype=torch.bfloat16)
        x[0, column] = bad
        y = linear(x, chain, backend="hopper")
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()


def test_zeros(make_chain):
    chain = make_chain(100, 2304, EVERY[:3], device="cuda")
    assert not linear(torch.zeros(1, 2304, device="cuda").half(), chain, backend="hopper").any()


def test_what_it_is_not_for_goes_to_triton(make_chain, bound):
    for n, dtype in ((2048, torch.float32), (100, torch.bfloat16), (1000, torch.float16)):
        chain = make_chain(65, n, [(3, False), "plane"], device="cuda")
        x = torch.randn(1, n, device="cuda").to(dtype)
        exact = x.double() @ dense(chain).T
        assert ((linear(x, chain, backend="hopper").double() - exact).abs() <= bound(chain, exact, dtype, x)).all()


def test_a_graph_sees_what_the_table_holds_by_then(make_chain, bound):
    chain = make_chain(300, 2176, EVERY, device="cuda")
    states = [Chain(300, 2176, chain.row_scale, chain.col_scale, chain.blocks[:n]) for n in range(len(EVERY) + 1)]
    table = Table(states[3], Room.of([chain]))
    x = torch.randn(1, 2176, device="cuda").bfloat16()
    out = torch.empty(1, 300, device="cuda", dtype=torch.bfloat16)
    linear(x, table, out=out, backend="hopper")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x, table, out=out, backend="hopper")
    for state in [*states, *reversed(states)]:
        table.update(state)
        out.fill_(float("nan"))
        graph.replay()
        exact = x.double() @ dense(state).T
        assert ((out.double() - exact).abs() <= bound(state, exact, torch.bfloat16, x)).all()
        assert torch.equal(out, linear(x, table, backend="hopper"))


def test_two_streams_at_once(make_chain):
    table = Table(make_chain(3000, 4096, [(16, False)] * 2, device="cuda"))
    xs = [torch.randn(1, 4096, device="cuda").bfloat16() for _ in range(2)]
    wanted = [linear(x, table, backend="hopper") for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    got = [[], []]
    for _ in range(30):
        for stream, x, into in zip(streams, xs, got, strict=True):
            with torch.cuda.stream(stream):
                into.append(linear(x, table, backend="hopper"))
    torch.cuda.synchronize()
    for want, into in zip(wanted, got, strict=True):
        assert all(torch.equal(y, want) for y in into)


def test_signs_past_two_gibibytes():
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of GPU memory")
    m, n = (1 << 18) + 61, 1 << 16
    signs = torch.randint(0, 256, (m, n // 8), dtype=torch.uint8, device="cuda")
    u, v = (torch.randn(size, 2, device="cuda").half() for size in (m, n))
    chain = Chain(m, n, torch.ones(m, device="cuda"), torch.ones(n, device="cuda"), (SignBlock(signs, u, v),))
    x = torch.randn(1, n, device="cuda").half()
    ids = torch.tensor([0, m // 2, m - 2, m - 1], device="cuda")
    exact = x.double() @ dense(chain.select(ids)).T
    size = x.double().abs() @ (u[ids].double().abs() @ v.double().abs().T).T
    error = (linear(x, chain, backend="hopper")[:, ids] - exact).abs()
    assert (error <= 2e-3 * exact.abs() + 1e-4 * size).all()


def test_a_source_that_cannot_be_compiled_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(cuda_driver.DriverError, match=r"(?s)NVRTC: .*error"):
        cuda_driver.Module("this is no program", "sm_90a")
    assert not list(tmp_path.rglob("*.cubin"))


def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = 'extern "C" __global__ void nothing() {}'
    for _ in range(2):
        cuda_driver.Module(source, "sm_90a").kernel("nothing")
    assert len(list(tmp_path.rglob("*.cubin"))) == 1
