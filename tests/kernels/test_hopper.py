"""Products of single bits, on GPUs that have them: where rows of signs are a multiple of 16 bytes, and nowhere else.

The kernels also run elsewhere, compiled by a C++ compiler; `test_hopper_graphs.py` is about what needs the GPU.
"""

import ctypes
import mmap
from types import SimpleNamespace

import pytest
import torch

from bitstack.kernels import Chain, Room, SignBlock, Table, dispatch, hopper, linear
from bitstack.kernels.reference import dense

#: Elements of a matrix that take long enough without a GPU.
SMALL = 1 << 17
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


@pytest.fixture
def device(bits_device: str) -> str:
    """Where matrices lie that the kernels are for."""
    return bits_device


def _multiply(x, matrix, bias=None, out=None):
    if x.is_cuda:
        return linear(x, matrix, bias=bias, out=out, backend="hopper")
    out = torch.empty(len(x), matrix.rows, dtype=x.dtype) if out is None else out
    hopper.multiply_few(x, matrix, bias, out)
    return out


def _check(chain, bound, tokens, dtype, bias=None):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, chain.columns, generator=g).to(chain.device, dtype)
    exact = x.double() @ dense(chain).T
    limit = bound(chain, exact, dtype, x)
    if bias is not None:
        exact = exact + bias.double()
        limit = limit + torch.finfo(dtype).eps * exact.abs() + 1e-6
    matrix = Table(chain)
    assert matrix.hopper is not None
    out = torch.full((tokens, chain.rows), float("nan"), device=chain.device, dtype=dtype)
    _multiply(x, matrix, bias, out)
    error = (out.double() - exact).abs()
    assert (error <= limit).all(), f"{(error / limit).max():.3g} times what it may be"
    if x.is_cuda:  # elsewhere threads take turns, always the same ones
        assert torch.equal(_multiply(x, matrix, bias), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "n"), [(1, 128), (63, 256), (64, 1024), (65, 1152), (131, 2048), (1000, 2176), (257, 4096), (70, 14336)]
)
def test_shapes(make_chain, bound, device, m, n, dtype):
    if device == "cpu" and m * n > SMALL:
        pytest.skip("takes too long on a CPU")
    for tokens in (1, 2, 3, 4, 5, 33) if device == "cuda" else (7,):  # launches for 4, 2 and 1
        _check(make_chain(m, n, EVERY, device=device, garbage=True), bound, tokens, dtype)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 7, 8, 9, 10, 15, 16, 17, 33, 65])
def test_ranks(make_chain, bound, device, rank, fp8):
    n = 2304 if device == "cuda" else 256
    for blocks in ([(rank, fp8)], [(rank, fp8), "plane"], [("lowrank", rank, fp8)], [(3, True), (rank, fp8)]):
        _check(make_chain(100, n, blocks, device=device), bound, 2, torch.bfloat16)
        _check(make_chain(100, n, blocks, device=device), bound, 1, torch.float16)


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
def test_kinds(make_chain, bound, device, blocks, bias):
    m = 1031 if device == "cuda" else 131
    chain = make_chain(m, 640, blocks, device=device)
    added = torch.randn(m, device=device).bfloat16() if bias else None
    for tokens in (1, 2, 4):
        _check(chain, bound, tokens, torch.bfloat16, added)


@pytest.mark.parametrize("layout", ["every second", "one number"])
def test_a_bias_need_not_be_dense(make_chain, device, monkeypatch, layout):
    chain = make_chain(100, 128, [], device=device)
    numbers = torch.arange(200.0, device=device)
    bias = numbers[::2] if layout == "every second" else numbers[7].expand(100)
    if device == "cpu":
        monkeypatch.setattr(dispatch, "choose", lambda *_: SimpleNamespace(linear=hopper.multiply_few))
    x = torch.ones(2, 128, dtype=torch.bfloat16, device=device)
    assert torch.equal(linear(x, Table(chain), bias=bias, backend="hopper"), bias.bfloat16().expand(2, 100))


@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16])
def test_types_of_the_scale_vectors(make_chain, bound, device, scales):
    _check(make_chain(100, 1024, EVERY, device=device, scales=scales), bound, 1, torch.bfloat16)


def test_many_chains_are_one_matrix(make_chain, bound, device):
    n = 2048 if device == "cuda" else 256
    chains = [make_chain(200, n, EVERY[: 1 + s % 8], device=device, seed=s) for s in range(10)]
    chains.append(make_chain(77, n, EVERY, device=device, seed=99))
    matrix = Table(
        chains,
        row_scale=torch.cat([c.row_scale for c in chains]),
        col_scale=torch.stack([c.col_scale for c in chains]),
    )
    x = torch.randn(2, n, generator=torch.Generator().manual_seed(2)).to(device, torch.bfloat16)
    wanted = [x.double() @ dense(c).T for c in chains]
    limits = [bound(c, w, torch.bfloat16, x) for c, w in zip(chains, wanted, strict=True)]
    got = _multiply(x, matrix)
    assert ((got.double() - torch.cat(wanted, 1)).abs() <= torch.cat(limits, 1)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_shows_in_every_row(make_chain, device, bad):
    chain = make_chain(100, 2304, [(3, False)], device=device)
    for column in (0, 2303):
        x = torch.ones(2, 2304, device=device, dtype=torch.bfloat16)
        x[0, column] = bad
        y = _multiply(x, Table(chain))
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()


@pytest.mark.parametrize("what", ["u", "v"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers_show(make_chain, device, what, bad):
    chain = make_chain(100, 256, [(3, False), (2, True), ("sparse", 0.02)], device=device)
    getattr(chain.blocks[0], what)[7, 1] = bad
    y = _multiply(torch.ones(1, 256, device=device, dtype=torch.bfloat16), Table(chain))
    assert y[0].isfinite().sum() == (99 if what == "u" else 0)
    assert not y[0, 7].isfinite()


@pytest.mark.parametrize("power", [-40, -20, 20, 37])
def test_x_of_any_size(make_chain, bound, device, power):
    """The steps of sums follow from it."""
    chain = make_chain(70, 256, [(3, False), (2, True), ("sparse", 0.02)], device=device)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(5)).to(device, torch.bfloat16)
    x[1] *= 2.0**power
    exact = x.double() @ dense(chain).T
    got = _multiply(x, Table(chain))
    assert ((got.double() - exact).abs() <= bound(chain, exact, torch.bfloat16, x)).all()


def _of_one_size(m, n, device, u, v, col_scale=1.0, blocks=1):
    """A chain of blocks with the same factors, all of whose numbers of a kind are the same, and all signs +1."""
    signs = torch.full((m, n // 8), 255, dtype=torch.uint8, device=device)
    block = SignBlock(signs, *(torch.full((k, 1), size, device=device).half() for k, size in ((m, u), (n, v))))
    scales = torch.ones(m, device=device), torch.full((n,), col_scale, device=device)
    return Chain(m, n, *scales, (block,) * blocks)


@pytest.mark.parametrize(
    ("x", "col_scale", "u", "v"),
    [
        (1e38, 1.0, 2.0**-20, 1.0),  # a sum times the step is no number
        (1e38, 1e3, 2.0**-24, 1.0),  # so is x times the scales of columns
        (2.0**127, 1.0, 2.0**-20, 1.0),
        (1.9 * 2.0**127, 0.999, 2.0**-24, 65504.0),  # and what steps follow from
        (2.0**111, 0.9, 2.0**-14, 65504.0),  # which fast division is not for
        (2.0**-40, 1.0, 2.0**-24, 1.0),
        (1e-20, 1e-6, 1.0, 1.0),
    ],
)
def test_no_step_leaves_the_range_where_y_does_not(bound, device, x, col_scale, u, v):
    chain = _of_one_size(67, 128, device, u, v, col_scale)
    if v == 65504.0:
        chain.blocks[0].v[1:] = 0
    xs = torch.full((2, 128), x, dtype=torch.bfloat16, device=device)
    xs[1, 1:] = 0
    exact = xs.double() @ dense(chain).T
    got = _multiply(xs, Table(chain))
    assert ((got.double() - exact).abs() <= bound(chain, exact, torch.bfloat16, xs)).all()
    assert got.all()


def test_no_entry_leaves_the_range_where_y_does_not(make_chain, bound, device):
    chain = make_chain(67, 128, [("sparse", 0.05)], device=device)
    x = torch.full((1, 128), 2e37, dtype=torch.bfloat16, device=device)
    exact = x.double() @ dense(chain).T
    assert ((_multiply(x, Table(chain)).double() - exact).abs() <= bound(chain, exact, torch.bfloat16, x)).all()


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_sum_that_is_no_number_shows(device, blocks):
    """Where only the scale of a column makes it so, in all that is added to a row or in some of it."""
    chain = _of_one_size(67, 4096, device, 2.0**-24, 2.0**-14, blocks=blocks)
    matrix = Table(chain)
    matrix.col_scale[3000] = 1e30  # its reach does not tell of it
    x = torch.full((2, 4096), 2.0**100, dtype=torch.bfloat16, device=device)
    x[1, 3000] = 0
    y = _multiply(x, matrix)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_shows_where_nothing_is_added(make_chain, device, bad):
    """The product of zero and what is no number is none either."""
    chain = make_chain(131, 2304, [(3, True), ("sparse", 0.01)], device=device)
    empty = _of_one_size(131, 2304, device, 0.0, 1.0)
    for matrix in (chain, empty, Chain(131, 2304, chain.row_scale, chain.col_scale, (chain.blocks[0], *empty.blocks))):
        if matrix is not empty:
            matrix.blocks[0].u.view(torch.uint8)[5] = 0
        x = torch.ones(2, 2304, dtype=torch.bfloat16, device=device)
        x[0, 77] = bad
        y = _multiply(x, Table(matrix))
        assert not y[0].isfinite().any()
        assert y[1].isfinite().all()
        assert matrix is chain or not y[1, 5]


def test_as_many_as_a_sum_can_count(device):
    chain = _of_one_size(3, 128, device, 0.5, 1.0, blocks=2046)
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    x[1, 5] = float("inf")  # of this all have no number to add
    exact = 2046 * (x[0].double() @ dense(_of_one_size(3, 128, device, 0.5, 1.0)).T)
    got = _multiply(x, Table(chain))
    assert ((got[0].double() - exact).abs() <= 2.0**-8 * exact.abs()).all()
    assert not got[1].isfinite().any()


def test_rows_of_very_different_size(make_chain, bound, device):
    chain = make_chain(70, 256, [(3, False), "plane", (2, False)], device=device)
    spread = torch.logspace(-20, 0, 70, 2.0, device=device)
    for block in chain.blocks:
        block.u.copy_((block.u.float().sign() * spread[:, None]).half())
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(5)).to(device, torch.bfloat16)
    exact = x.double() @ dense(chain).T
    got = _multiply(x, Table(chain))
    assert ((got.double() - exact).abs() <= bound(chain, exact, torch.bfloat16, x)).all()


def test_more_segments_than_a_sum_can_count_are_left_to_others(make_chain, device):
    chain = make_chain(3, 128, [(1, False)], device=device)
    x = torch.zeros(1, 128, dtype=torch.bfloat16, device=device)
    assert hopper.takes(x, Table(chain, Room(2046)))
    assert not hopper.takes(x, Table(chain, Room(2047)))


def test_zeros(make_chain, device):
    chain = make_chain(100, 2304, EVERY[:3], device=device)
    assert not _multiply(torch.zeros(1, 2304, device=device).half(), Table(chain)).any()


def _before_what_may_not_be_read(tensor):
    """A copy of a tensor, and how many bytes it takes, right before a page that cannot be read."""
    pages = -(-tensor.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    end = ctypes.c_void_p(whole.data_ptr() + pages * mmap.PAGESIZE)
    assert libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0  # PROT_NONE
    start = pages * mmap.PAGESIZE - tensor.nbytes
    copy = whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    copy.view(torch.uint8).copy_(tensor.view(torch.uint8))
    return copy


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [2, 8, 16])
@pytest.mark.parametrize("numbers", [1, 8])
def test_v_may_lie_at_any_address(make_chain, bound, device, rank, fp8, numbers):
    """V is copied as it lies only where it lies at a multiple of 16 bytes."""
    chain = make_chain(67, 256, [(rank, fp8)], device=device)
    block = chain.blocks[0]
    space = torch.empty(block.v.numel() + numbers, dtype=block.v.dtype, device=device)
    v = space[numbers:].view(block.v.shape)
    v.view(torch.uint8).copy_(block.v.view(torch.uint8))
    moved = SignBlock(block.signs, block.u, v, block.scale)
    _check(Chain(67, 256, chain.row_scale, chain.col_scale, (moved,)), bound, 1, torch.bfloat16)


@pytest.mark.parametrize(("rank", "fp8"), [(32, True), (17, True), (16, True), (16, False), (7, False)])
def test_nothing_is_read_behind_u(make_chain, bound, device, rank, fp8):
    if device == "cuda":
        pytest.skip("where memory ends is known on the CPU")
    chain = make_chain(67, 128, [(rank, fp8)])
    block = chain.blocks[0]
    u = _before_what_may_not_be_read(block.u)
    chain = Chain(67, 128, chain.row_scale, chain.col_scale, (SignBlock(block.signs, u, block.v, block.scale),))
    _check(chain, bound, 1, torch.bfloat16)  # what cannot be read never comes
