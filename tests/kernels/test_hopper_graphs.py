"""Products of single bits on GPUs that have them: graphs, streams, compiling, and what is too large or not for them."""

import functools

import pytest
import torch

from bitstack.kernels import Chain, Room, SignBlock, Table, cuda_driver, linear, running_sums
from bitstack.kernels.reference import dense
from bitstack.tools.bench.random_chains import random_chain
from tests.kernels.conftest import HOPPER, marked

NEEDS_HOPPER = marked(HOPPER)
BLOCKS = [
    (8, True),
    "plane",
    "plane",
    ("sparse", 0.02),
    ("lowrank", 5, True),
    (3, False),
    "plane",
    ("lowrank", 2, False),
]


@NEEDS_HOPPER
def test_what_it_is_not_for_goes_to_triton(make_chain, bound):
    for n, dtype in ((2048, torch.float32), (100, torch.bfloat16), (1000, torch.float16)):
        chain = make_chain(65, n, [(3, False), "plane"], device="cuda")
        x = torch.randn(1, n, device="cuda").to(dtype)
        exact = x.double() @ dense(chain).T
        assert ((linear(x, chain, backend="hopper").double() - exact).abs() <= bound(chain, exact, dtype, x)).all()


@NEEDS_HOPPER
def test_a_graph_sees_what_the_table_holds_by_then(make_chain, bound):
    chain = make_chain(300, 2176, BLOCKS, device="cuda")
    states = [Chain(300, 2176, chain.row_scale, chain.col_scale, chain.blocks[:n]) for n in range(len(BLOCKS) + 1)]
    matrix = Table(states[3], Room.of([chain]))
    x = torch.randn(1, 2176, device="cuda").bfloat16()
    out = torch.empty(1, 300, device="cuda", dtype=torch.bfloat16)
    linear(x, matrix, out=out, backend="hopper")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x, matrix, out=out, backend="hopper")
    for state in [*states, *reversed(states)]:
        matrix.update(state)
        out.fill_(float("nan"))
        graph.replay()
        exact = x.double() @ dense(state).T
        assert ((out.double() - exact).abs() <= bound(state, exact, torch.bfloat16, x)).all()
        assert torch.equal(out, linear(x, matrix, backend="hopper"))


@NEEDS_HOPPER
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_the_same_input_gives_the_same_bits_each_time(tokens):
    # Entries of sparse blocks are read from all over the memory while the ring of signs is filled: what other warps
    # read from shared memory waited for that, and was overwritten first.
    device = torch.device("cuda")
    tables = [Table(random_chain("default", 4096, 14336, 4, device)) for _ in range(3)]
    xs = torch.randn(12, tokens, 14336, device=device).bfloat16()
    outs, graph = torch.empty(12, tokens, 4096, device=device, dtype=torch.bfloat16), torch.cuda.CUDAGraph()
    multiply = [functools.partial(linear, x, tables[i % 3], out=outs[i], backend="hopper") for i, x in enumerate(xs)]
    for call in multiply:
        call()
    with torch.cuda.graph(graph):
        for call in multiply:
            call()
    seen = []
    for _ in range(300):
        graph.replay()
        seen.append(outs.clone())
    assert all(torch.equal(one, seen[0]) for one in seen)


@NEEDS_HOPPER
def test_two_streams_at_once(make_chain):
    matrix = Table(make_chain(3000, 4096, [(16, False)] * 2, device="cuda"))
    xs = [torch.randn(1, 4096, device="cuda").bfloat16() for _ in range(2)]
    wanted = [linear(x, matrix, backend="hopper") for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    got = [[], []]
    for _ in range(30):
        for stream, x, into in zip(streams, xs, got, strict=True):
            with torch.cuda.stream(stream):
                into.append(linear(x, matrix, backend="hopper"))
    torch.cuda.synchronize()
    for want, into in zip(wanted, got, strict=True):
        assert all(torch.equal(y, want) for y in into)


def _captured(matrix, x):
    out, graph = torch.empty(len(x), matrix.rows, device="cuda", dtype=x.dtype), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x, matrix, out=out, backend="hopper")
    return graph, out


@NEEDS_HOPPER
def test_two_graphs_at_once(make_chain):
    matrix = Table(make_chain(3000, 4096, [(16, False)] * 2, device="cuda"))
    xs = [torch.randn(1, 4096, device="cuda").bfloat16() for _ in range(2)]
    wanted = [linear(x, matrix, backend="hopper") for x in xs]
    made = [_captured(matrix, x) for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    for _ in range(30):
        for stream, (graph, _) in zip(streams, made, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(out, want) for (_, out), want in zip(made, wanted, strict=True))


@NEEDS_HOPPER
def test_the_sums_of_a_graph_end_with_it(make_chain):
    matrix = Table(make_chain(300, 4096, [(16, False)], device="cuda"))
    x = torch.randn(1, 4096, device="cuda").bfloat16()
    want = linear(x, matrix, backend="hopper")
    before = len(running_sums._of_graphs)
    for _ in range(3):  # without anything else in between, so that the second and the third clear theirs themselves
        graph, out = _captured(matrix, x)
        for _ in range(2):
            out.fill_(float("nan"))
            graph.replay()
            assert torch.equal(out, want)
        del graph
    torch.cuda.synchronize()
    linear(x, matrix, backend="hopper")
    _captured(matrix, x)
    assert len(running_sums._of_graphs) <= before + 2


@NEEDS_HOPPER
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


@NEEDS_HOPPER
def test_a_source_that_cannot_be_compiled_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(cuda_driver.DriverError, match=r"(?s)NVRTC: .*error"):
        cuda_driver.Module("this is no program", "sm_90a")
    assert not list(tmp_path.rglob("*.cubin"))


@NEEDS_HOPPER
def test_what_was_compiled_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.empty(1, device="cuda")  # a module is loaded where something has been
    source = 'extern "C" __global__ void nothing() {}'
    for _ in range(2):
        cuda_driver.Module(source, "sm_90a").kernel("nothing")
    assert len(list(tmp_path.rglob("*.cubin"))) == 1
