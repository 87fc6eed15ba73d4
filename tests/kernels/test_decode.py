import pytest
import torch

from bitstack.kernels import linear
from bitstack.kernels.reference import dense
from tests.kernels.conftest import may_vary

MIXED = [(8, True), (6, False), (4, True), (1, True)]


def _check(make_chain, bound, case, m, n, blocks, tokens, dtype=torch.float32, **options):
    backend, device = case
    chain = make_chain(m, n, blocks, device=device, **options)
    x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    exact = x.double() @ dense(chain).T
    out = torch.full((tokens, m), float("nan"), dtype=dtype, device=device)
    assert linear(x, chain, out=out, backend=backend) is out
    error = (out.double() - exact).abs()
    assert (error <= bound(chain, exact, dtype, x)).all(), f"largest error {error.max():.3g}"
    if may_vary(case):
        again = linear(x, chain, backend=backend)
        assert torch.equal(again, out)
    return out


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 15, 16, 17, 33, 65])
def test_ranks(make_chain, bound, case, rank, fp8):
    _check(make_chain, bound, case, 37, 53, [(rank, fp8)], 1)


@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (1, 7), (7, 1), (13, 7), (2, 8), (127, 13), (16, 127), (131, 137), (257, 65)]
)
def test_ragged_shapes_with_one_to_many_tokens(make_chain, bound, case, m, n):
    for tokens in (1, 3, 16):
        _check(make_chain, bound, case, m, n, [(3, True), (2, False)], tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 16, 100])
def test_input_types_and_mixed_ranks(make_chain, bound, case, tokens, dtype):
    _check(make_chain, bound, case, 131, 61, MIXED, tokens, dtype)


@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16])
def test_types_of_the_scale_vectors(make_chain, bound, case, scales):
    for tokens in (1, 16):
        _check(make_chain, bound, case, 131, 29, MIXED[:2], tokens, scales=scales)


@pytest.mark.parametrize("tokens", [1, 16])
def test_padding_bits_do_not_matter(make_chain, case, tokens):
    backend, device = case
    clean, dirty = (make_chain(131, 13, [(3, True)], device=device, garbage=flag) for flag in (False, True))
    assert not torch.equal(clean.blocks[0].signs, dirty.blocks[0].signs)
    x = torch.randn(tokens, 13, device=device)
    assert torch.equal(linear(x, clean, backend=backend), linear(x, dirty, backend=backend))


def test_no_blocks_are_zeros(make_chain, case):
    backend, device = case
    chain = make_chain(5, 9, [], device=device)
    out = torch.full((2, 5), float("nan"), device=device)
    assert not linear(torch.ones(2, 9, device=device), chain, out=out, backend=backend).any()


def test_leading_dimensions_and_strides_of_x(make_chain, case):
    backend, device = case
    chain = make_chain(130, 9, MIXED, device=device)
    x = torch.randn(9, 2, 2, device=device).permute(1, 2, 0)
    y = linear(x, chain, backend=backend)
    assert y.shape == (2, 2, 130)
    # A library's matrix product may sum strided input in another order: equal to float32's rounding, not to the bit.
    torch.testing.assert_close(y, linear(x.contiguous(), chain, backend=backend))
    assert linear(x[0, 0], chain, backend=backend).shape == (130,)
    assert linear(x[:, :0], chain, backend=backend).shape == (2, 0, 130)


def test_no_gradient_is_kept(make_chain, case):
    backend, device = case
    chain = make_chain(130, 9, MIXED, device=device)
    for tokens in (1, 16):
        assert not linear(
            torch.ones(tokens, 9, device=device, requires_grad=True), chain, backend=backend
        ).requires_grad


@pytest.mark.parametrize("tokens", [1, 4, 5])
def test_the_backends_agree(make_chain, bound, case, tokens):
    backend, device = case
    chain = make_chain(131, 61, MIXED, device=device)
    x = torch.randn(tokens, 61, device=device)
    exact = linear(x, chain, backend="reference")
    assert ((linear(x, chain, backend=backend) - exact).abs() <= bound(chain, exact.double(), x.dtype, x)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_real_shapes_natively(make_chain, bound):
    for m, n in ((576, 576), (1536, 576), (576, 1536), (4096, 4096)):
        for tokens, dtype in ((1, torch.float32), (1, torch.bfloat16), (2, torch.float16), (64, torch.bfloat16)):
            _check(make_chain, bound, ("auto", "cuda"), m, n, [(8, True), (16, False), (1, True)], tokens, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one(make_chain, bound):
    _check(make_chain, bound, ("triton", "cuda:1"), 131, 61, MIXED, 1)
    _check(make_chain, bound, ("triton", "cuda:1"), 131, 61, MIXED, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_signs_past_two_gibibytes():
    from bitstack.kernels import Chain, SignBlock

    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of GPU memory")
    m, n = (1 << 18) + 61, 1 << 16
    signs = torch.randint(0, 256, (m, n // 8), dtype=torch.uint8, device="cuda")
    assert signs.numel() > 1 << 31
    u, v = (torch.randn(size, 2, device="cuda").half() for size in (m, n))
    chain = Chain(m, n, torch.ones(m, device="cuda"), torch.ones(n, device="cuda"), (SignBlock(signs, u, v),))
    x = torch.randn(1, n, device="cuda")
    ids = torch.tensor([0, m // 2, m - 2, m - 1], device="cuda")
    exact = x.double() @ dense(chain.select(ids)).T
    size = x.double().abs() @ (u[ids].double().abs() @ v.double().abs().T).T
    error = (linear(x, chain, backend="triton")[:, ids] - exact).abs()
    assert (error <= (n + 12) * torch.finfo(torch.float32).eps * size).all()
