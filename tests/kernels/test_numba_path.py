"""What is particular to the path that numba compiles: its threads, its splits, and what it holds and reads."""

import ctypes
import gc
import mmap
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("numba")

from bitstack.kernels import linear, numba_path, rebuild
from bitstack.kernels.chain import Chain
from bitstack.kernels.numba_tables import TABLE_ROWS
from bitstack.kernels.reference import dense

MIXED = [("sparse", 0.05), (8, True), "plane", (3, False), "plane", "plane", "plane", "plane", "plane", (1, True)]


@pytest.fixture
def threads():
    """Sets torch's number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("m", [517, TABLE_ROWS + 69])
def test_the_number_of_threads_does_not_change_a_bit(make_chain, monkeypatch, threads, m):
    monkeypatch.setattr(numba_path, "SMALL", 0)
    chain = make_chain(m, 203, MIXED, garbage=True)
    x = torch.randn(3, 203)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append((linear(x, chain, backend="numba"), rebuild(chain, backend="numba")))
    monkeypatch.setattr(numba_path, "openmp_parallel", lambda: 0)
    results.append((linear(x, chain, backend="numba"), rebuild(chain, backend="numba")))
    for y, w in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(w, results[0][1])


@pytest.mark.parametrize(
    "blocks",
    [
        [(8, True)],
        [(8, True), "plane"],
        [("sparse", 0.02), (16, False), (7, True), "plane", "plane", (5, True), (33, True), (2, True)],
        [(1, True), (8, False), ("sparse", 0.01)],
    ],
)
@pytest.mark.parametrize("n", [5, 64, 299])
def test_look_ups(make_chain, bound, blocks, n):
    chain = make_chain(TABLE_ROWS + 3, n, blocks, garbage=True, scales=torch.float16)
    exact = dense(chain)
    for tokens in (1, 2):
        x = torch.randn(tokens, n)
        y = x.double() @ exact.T
        out = torch.full(y.shape, float("nan"))
        linear(x, chain, out=out, backend="numba")
        assert ((out - y).abs() <= bound(chain, y, x.dtype, x)).all()


def test_threads_that_come_late_are_left_alone_for_a_while(make_chain, monkeypatch, threads):
    threads(2)
    if not numba_path.openmp_parallel():
        pytest.skip("this torch has no OpenMP that is found")
    used, clock, delay = [], [100.0], [0.0]

    def run(*args):
        used.append(args[9])
        clock[0] += delay[0]

    monkeypatch.setattr(numba_path, "SMALL", 0)
    monkeypatch.setattr(numba_path, "run", run)
    monkeypatch.setattr(numba_path, "_patience", numba_path._Patience())
    monkeypatch.setattr(numba_path.time, "monotonic", lambda: clock[0])
    chain, x = make_chain(13, 9, [(2, True)]), torch.randn(1, 9)
    # How long each call takes, and how long it is until it.
    for delay[0], wait in ((0, 0), (0.01, 0), (0, 0), (0, 0.06), (0.01, 0), (0.01, 0.06), (0, 0.06), (0, 0)):
        clock[0] += wait
        linear(x, chain, backend="numba")
    assert used == [2, 2, 1, 2, 2, 2, 1, 1]


def test_several_callers_at_once_do_not_disturb_each_other(make_chain, threads):
    threads(2)
    chains = [make_chain(TABLE_ROWS + seed, 203, MIXED, seed=seed) for seed in range(4)]
    x = torch.randn(1, 203)
    alone = [linear(x, chain, backend="numba") for chain in chains]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda chain: linear(x, chain, backend="numba"), chains))
            assert all(torch.equal(y, z) for y, z in zip(alone, together, strict=True))


def test_torch_s_own_threads_are_found():
    from bitstack.kernels.threads import openmp_parallel

    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch has no OpenMP that is looked for")
    assert openmp_parallel()


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("m", "n"), [(13, 77), (64, 64), (131, 9)])
def test_every_split_of_the_work_gives_the_same_result(make_chain, bound, monkeypatch, m, n, tokens):
    chain = make_chain(m, n, MIXED, garbage=True)
    exact, x = dense(chain), torch.randn(tokens, n)
    y = x.double() @ exact.T
    for few, z, tile in ((0, 1, 1), (0, 1 << 20, 7 * n), (tokens, 1, 1), (tokens, 3000, 1), (tokens, 1 << 20, 1)):
        for name, value in (("FEW_TOKENS", few), ("Z", z), ("TILE", tile)):
            monkeypatch.setattr(numba_path, name, value)
        assert ((linear(x, chain, backend="numba") - y).abs() <= bound(chain, y, x.dtype, x)).all()
        for dtype in (torch.float32, torch.half):
            error = (rebuild(chain, dtype=dtype, backend="numba").double() - exact).abs()
            assert (error <= bound(chain, exact, dtype)).all()


def test_tokens_do_not_depend_on_each_other(make_chain):
    chain, x = make_chain(131, 61, MIXED), torch.randn(numba_path.FEW_TOKENS, 61)
    together = linear(x, chain, backend="numba")
    assert torch.equal(together, torch.cat([linear(row[None], chain, backend="numba") for row in x]))


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_what_is_held_between_calls_is_bounded(make_chain, monkeypatch, threads, tokens):
    threads(2)
    monkeypatch.setattr(numba_path, "_held", type("Fresh", (), {})())
    chain = make_chain(2048, 2048, [(8, True), (8, True), "plane", (8, True)])
    linear(torch.randn(tokens, 2048), chain, backend="numba")
    # W would take 16 MiB.
    assert 0 < numba_path.workspace_bytes() < 3 << 19
    before = len(numba_path._plans)
    del chain
    gc.collect()
    assert len(numba_path._plans) < before


@pytest.mark.skipif(sys.platform != "linux", reason="protects a page as Linux does")
def test_nothing_is_read_past_the_last_row(make_chain):
    """The signs end where a page that must not be touched begins."""
    m, n = 9, 21
    chain = make_chain(m, n, [(2, True)])
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    block = chain.blocks[0]
    size = block.signs.numel()
    signs = torch.frombuffer(area, dtype=torch.uint8, offset=mmap.PAGESIZE - size, count=size).view(m, 3)
    signs.copy_(block.signs)
    edge = Chain(m, n, chain.row_scale, chain.col_scale, (type(block)(signs, block.u, block.v, block.scale),))
    x = torch.randn(1, n)
    assert torch.equal(linear(x, edge, backend="numba"), linear(x, chain, backend="numba"))
    assert torch.equal(rebuild(edge, backend="numba"), rebuild(chain, backend="numba"))
