import pytest
import torch

from bitstack.kernels import Chain, SignBlock, linear, rebuild, rows
from bitstack.kernels.reference import dense
from tests.kernels.conftest import may_vary

MIXED = [(8, True), (6, False), (4, True), (1, True)]


def _check(make_chain, bound, case, m, n, blocks, dtype=torch.float32, **options):
    backend, device = case
    chain = make_chain(m, n, blocks, device=device, **options)
    out = torch.full((m, n), float("nan"), dtype=dtype, device=device)
    assert rebuild(chain, dtype=dtype, out=out, backend=backend) is out
    exact = dense(chain)
    error = (out.double() - exact).abs()
    assert (error <= bound(chain, exact, dtype)).all(), f"largest error {error.max():.3g}"
    if may_vary(case):
        assert torch.equal(rebuild(chain, dtype=dtype, backend=backend), out)


def test_the_definition_by_hand():
    """signs 0b01 → column 0 is +1 and column 1 is -1; W = r · c · sign · (2·3, 2·5)."""
    block = SignBlock(
        torch.tensor([[1]], dtype=torch.uint8), torch.tensor([[2.0]]).half(), torch.tensor([[3.0], [5.0]]).half()
    )
    chain = Chain(1, 2, torch.tensor([10.0]), torch.tensor([1.0, 0.5]), (block,))
    for backend in ("reference", "torch"):
        assert rebuild(chain, backend=backend).tolist() == [[60.0, -50.0]]
        assert linear(torch.tensor([[1.0, 2.0]]), chain, backend=backend).tolist() == [[-40.0]]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 15, 16, 17, 33, 65])
def test_ranks(make_chain, bound, case, rank, fp8):
    _check(make_chain, bound, case, 37, 53, [(rank, fp8)])


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (7, 1), (13, 7), (127, 13), (13, 127), (67, 131)])
def test_ragged_shapes(make_chain, bound, case, m, n):
    _check(make_chain, bound, case, m, n, [(3, True), (2, False)])
    _check(make_chain, bound, case, m, n, [(3, True), (2, False)], garbage=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_result_types_and_mixed_ranks(make_chain, bound, case, dtype):
    _check(make_chain, bound, case, 61, 59, MIXED, dtype)
    _check(make_chain, bound, case, 61, 59, MIXED[:1], dtype, scales=torch.bfloat16)


def test_every_float8_value(case):
    """Subnormals, zeros of both signs and NaN come out exactly, in U and in V."""
    backend, device = case
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    one = torch.ones(1, 1).to(torch.float8_e4m3fn)
    for u, v in ((codes.view(256, 1), one), (one, codes.view(256, 1))):
        m, n = len(u), len(v)
        plus = torch.full((m, (n + 7) // 8), 255, dtype=torch.uint8)
        block = SignBlock(*(t.to(device) for t in (plus, u, v, torch.ones(1))))
        chain = Chain(m, n, torch.ones(m, device=device), torch.ones(n, device=device), (block,))
        got = rebuild(chain, backend=backend).flatten().cpu()
        assert torch.equal(got.isnan(), codes.float().isnan())
        assert torch.equal(got.nan_to_num(), codes.float().nan_to_num())
        if n == 1:
            y = linear(torch.ones(1, 1, device=device), chain, backend=backend).flatten().cpu()
            assert torch.equal(y.nan_to_num(), codes.float().nan_to_num())
            assert torch.equal(y.isnan(), codes.float().isnan())


def test_no_blocks_are_zeros(make_chain, case):
    backend, device = case
    out = torch.full((5, 9), float("nan"), device=device)
    assert not rebuild(make_chain(5, 9, [], device=device), out=out, backend=backend).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_the_rows_of_the_matrix(make_chain, bound, case, dtype):
    backend, device = case
    chain = make_chain(67, 29, MIXED, device=device)
    ids = torch.tensor([66, 0, 5, 5, 31], device=device)
    got = rows(chain, ids, dtype=dtype, backend=backend)
    exact = dense(chain)[ids]
    assert got.dtype == dtype
    assert ((got.double() - exact).abs() <= bound(chain.select(ids), exact, dtype)).all()
    assert rows(chain, ids[:0], dtype=dtype, backend=backend).shape == (0, 29)
    assert not rows(make_chain(67, 29, [], device=device), ids, dtype=dtype, backend=backend).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_more_elements_than_32_bits_address():
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of GPU memory")
    m, n = 33_001, 66_007
    signs = torch.randint(0, 256, (m, (n + 7) // 8), dtype=torch.uint8, device="cuda")
    u, v = (torch.randn(size, 2, device="cuda").half() for size in (m, n))
    chain = Chain(m, n, torch.ones(m, device="cuda"), torch.ones(n, device="cuda"), (SignBlock(signs, u, v),))
    ids = torch.tensor([0, m // 2, m - 2, m - 1], device="cuda")
    exact = dense(chain.select(ids))
    w = rebuild(chain, dtype=torch.float16, backend="triton")
    assert w.numel() > 1 << 31
    size = u[ids].double().abs() @ v.double().abs().T
    assert ((w[ids] - exact).abs() <= torch.finfo(torch.float16).eps * (size + 1e-3)).all()
