"""Chains to test on, and error bounds derived from how the sums are made."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence

import pytest
import torch

# Without a GPU the same kernels run interpreted; triton reads this when it is imported.
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton" in sys.modules:
        raise RuntimeError("triton was imported before TRITON_INTERPRET=1 was set: set it in tests/conftest.py")
    os.environ["TRITON_INTERPRET"] = "1"

from bitstack.kernels import Chain, SignBlock
from bitstack.kernels.reference import signs

MakeChain = Callable[..., Chain]
Bound = Callable[..., torch.Tensor]

NATIVE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
CASES = [
    pytest.param(("triton", NATIVE), id="triton", marks=NEEDS_TRITON),
    pytest.param(("torch", "cpu"), id="torch"),
    pytest.param(("torch", "cuda"), id="torch-cuda", marks=GPU),
    pytest.param(("reference", "cpu"), id="reference"),
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and a device that it runs on."""
    return request.param


def _factors(rows: int, rank: int, fp8: bool, generator: torch.Generator) -> torch.Tensor:
    if not fp8:
        return torch.randn(rows, rank, generator=generator).half()
    # Any byte but the two NaN: all magnitudes, subnormal ones too.
    codes = torch.randint(0, 127, (rows, rank), generator=generator)
    codes += 128 * torch.randint(0, 2, (rows, rank), generator=generator)
    return codes.to(torch.uint8).view(torch.float8_e4m3fn)


def _make_chain(
    m: int,
    n: int,
    blocks: Sequence[tuple[int, bool]],
    *,
    device: str = "cpu",
    garbage: bool = False,
    scales: torch.dtype = torch.float32,
    seed: int = 0,
) -> Chain:
    """A random chain; `blocks` are (rank, whether float8). The padding bits are zero, or set at random."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for rank, fp8 in blocks:
        packed = torch.randint(0, 256, (m, (n + 7) // 8), dtype=torch.uint8, generator=g)
        if not garbage:
            packed[:, -1] &= 255 >> (-n % 8)
        # About 1 / 200 for float8, so that values stay near 1 and no float16 result overflows.
        scale = (torch.rand(rank, generator=g) + 0.5) / 4e4 if fp8 else None
        u, v = (_factors(size, rank, fp8, g) for size in (m, n))
        made.append(SignBlock(*(t.to(device) for t in (packed, u, v)), None if scale is None else scale.to(device)))
    row_scale, col_scale = ((torch.rand(size, generator=g) + 0.5).to(device, scales) for size in (m, n))
    return Chain(m, n, row_scale, col_scale, tuple(made))


@pytest.fixture
def make_chain() -> MakeChain:
    return _make_chain


def _absolute(chain: Chain) -> torch.Tensor:
    """Σ over blocks and k of the absolute values that make W, float64 [rows, columns]."""
    total = torch.zeros(chain.rows, chain.columns, dtype=torch.float64, device=chain.device)
    for block in chain.blocks:
        u, v = block.u.float().double().abs(), block.v.float().double().abs()
        total += (u if block.scale is None else u * block.scale.double()) @ v.T
    return chain.row_scale.double()[:, None] * total * chain.col_scale.double()


def _bound(chain: Chain, exact: torch.Tensor, dtype: torch.dtype, x: torch.Tensor | None = None) -> torch.Tensor:
    """The largest error that float32 sums in any order may have, plus one rounding to `dtype`.

    A sum of n products of p factors is off by at most (n + p) units of roundoff of the sum of the absolute products, to
    first order; `eps` is two units, which covers the higher orders. The chain sums over blocks and k, with x also over
    columns; a product has at most 8 factors and roundings of its own (x, two scales, scale, U, V, sign, last sum).
    """
    terms = sum(block.rank for block in chain.blocks) + len(chain.blocks) + 8
    size = _absolute(chain)
    rounded_w = 0.0
    if x is not None:
        terms += chain.columns
        size = x.double().abs() @ size.T
        if x.is_cuda and len(x) > 4:  # W is rounded to x.dtype, and cuBLAS may round partial sums to it once more.
            rounded_w = 2 * torch.finfo(x.dtype).eps
    info = torch.finfo(dtype)
    return (terms * torch.finfo(torch.float32).eps + rounded_w) * size + info.eps * exact.abs() + info.tiny * info.eps


@pytest.fixture
def bound() -> Bound:
    return _bound


@pytest.fixture
def unpack() -> Callable[[SignBlock], torch.Tensor]:
    return signs
