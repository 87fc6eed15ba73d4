"""Chains to test on, and error bounds derived from how the sums are made."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import cache, reduce
from typing import Any

import pytest
import torch

from bitstack.kernels import Chain, LowRankBlock, SignBlock, SparseBlock, hopper
from bitstack.kernels.chain import Block
from bitstack.kernels.cuda_driver import Kernel
from bitstack.kernels.reference import entries, signs
from tests.kernels import emulator

MakeChain = Callable[..., Chain]
Bound = Callable[..., torch.Tensor]

NATIVE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
NEEDS_NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
HOPPER = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no CUDA device of compute capability 9.0",
    ),
)
CASES = [
    pytest.param(("hopper", "cuda"), id="hopper", marks=HOPPER),
    pytest.param(("triton", NATIVE), id="triton", marks=NEEDS_TRITON),
    pytest.param(("numba", "cpu"), id="numba", marks=NEEDS_NUMBA),
    pytest.param(("torch", "cpu"), id="torch"),
    pytest.param(("torch", "cuda"), id="torch-cuda", marks=GPU),
    pytest.param(("reference", "cpu"), id="reference"),
]


def marked(marks: Sequence[pytest.MarkDecorator]) -> Callable[[Any], Any]:
    """What puts all of some marks on a test."""
    return lambda test: reduce(lambda made, mark: mark(made), marks, test)


class _Restored:
    """Stands in for what ends a patch that was not made."""

    def restore(self) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def _interpret_faster() -> Iterator[None]:
    """Have triton's interpreter prepare its language once for a kernel, and not for each function that this calls.

    That is a third of its time. What is prepared already stays as it is; without these names nothing changes.
    """
    try:
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
        prepare, language = interpreter._patch_lang, interpreter.tl
    except (ImportError, AttributeError):
        yield
        return
    ready: set[int] = set()

    def once(fn: Any) -> Any:
        modules = {id(value) for value in fn.__globals__.values() if value is language or value is language.core}
        if modules and modules <= ready:
            return _Restored()
        scope, outermost = prepare(fn), not ready
        ready.update(modules)
        if outermost:
            restore = scope.restore

            def end() -> None:
                ready.clear()
                restore()

            scope.restore = end
        return scope

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", once)
        yield


def may_vary(case: tuple[str, str]) -> bool:
    """Whether a kernel could give other bits the next time, so that it has to run twice.

    Interpreted, its programs run one after the other: the same by construction, and seconds of work.
    """
    return case != ("triton", "cpu")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and a device that it runs on."""
    return request.param


def _factors(rows: int, rank: int, fp8: bool, generator: torch.Generator) -> torch.Tensor:
    if not fp8:
        return torch.randn(rows, rank, generator=generator).half()
    return _codes((rows, rank), generator).view(torch.float8_e4m3fn)


def _sparse(m: int, n: int, places: torch.Tensor, codes: torch.Tensor, device: str = "cpu") -> SparseBlock:
    """A block with entries at places (row · n + column, in any order) of these e4m3 codes; the scale is 1 / 256."""
    places, order = places.sort()
    begin = torch.searchsorted(places // n, torch.arange(m))
    starts = begin[::64].clone(memory_format=torch.contiguous_format)
    offsets = begin - starts.repeat_interleave(64)[:m]
    assert offsets.max() < 1 << 16
    short = [(t % (1 << 16)).to(torch.int32).to(torch.int16) for t in (offsets, places % n)]  # wraps beyond 32767
    values = codes.to(torch.uint8)[order].view(torch.float8_e4m3fn)
    parts = (torch.full((1,), 2.0**-8), starts.int(), *short, values)
    return SparseBlock(n, *(t.to(device) for t in parts))


@pytest.fixture
def make_sparse() -> Callable[..., SparseBlock]:
    return _sparse


def _codes(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Any byte but the two NaN: all magnitudes, subnormal ones too."""
    codes = torch.randint(0, 127, shape, generator=generator)
    return (codes + 128 * torch.randint(0, 2, shape, generator=generator)).to(torch.uint8)


def _make_chain(
    m: int,
    n: int,
    blocks: Sequence[tuple[int, bool] | tuple[str, float] | tuple[str, int, bool] | str],
    *,
    device: str = "cpu",
    garbage: bool = False,
    scales: torch.dtype = torch.float32,
    seed: int = 0,
) -> Chain:
    """A random chain. The padding bits of signs are zero, or set at random.

    `blocks` are (rank, whether float8) for signs, "plane", ("sparse", share of the elements, at least one) or
    ("lowrank", rank, whether float8).
    """
    g = torch.Generator().manual_seed(seed)
    made: list[Block] = []
    for kind in blocks:
        if kind[0] == "sparse":
            places = torch.randperm(m * n, generator=g)[: max(1, int(kind[1] * m * n))]
            made.append(_sparse(m, n, places, _codes(places.shape, g), device))
            continue
        if kind == "plane":
            bits = torch.randint(0, 256, (made[-1].signs.numel(),), dtype=torch.uint8, generator=g)
            made.append(made[-1].plane(bits.to(device)))
            continue
        rank, fp8 = kind[-2:]
        packed = torch.randint(0, 256, (m, (n + 7) // 8), dtype=torch.uint8, generator=g)
        if not garbage:
            packed[:, -1] &= 255 >> (-n % 8)
        # About 1 / 200 for float8, so that values stay near 1 and no float16 result overflows.
        scale = (torch.rand(rank, generator=g) + 0.5) / 4e4 if fp8 else None
        u, v = (_factors(size, rank, fp8, g) for size in (m, n))
        factors = [None if t is None else t.to(device) for t in (u, v, scale)]
        made.append(LowRankBlock(*factors) if kind[0] == "lowrank" else SignBlock(packed.to(device), *factors))
    row_scale, col_scale = ((torch.rand(size, generator=g) + 0.5).to(device, scales) for size in (m, n))
    return Chain(m, n, row_scale, col_scale, tuple(made))


@pytest.fixture
def make_chain() -> MakeChain:
    return _make_chain


def absolute(chain: Chain) -> torch.Tensor:
    """Σ over blocks and k of the absolute values that make W, float64 [rows, columns]."""
    total = torch.zeros(chain.rows, chain.columns, dtype=torch.float64, device=chain.device)
    for block in chain.blocks:
        if isinstance(block, SparseBlock):
            total += entries(block).abs()
            continue
        u, v = block.u.float().double().abs(), block.v.float().double().abs()
        total += (u if block.scale is None else u * block.scale.double()) @ v.T * getattr(block, "gain", 1.0)
    return chain.row_scale.double()[:, None] * total * chain.col_scale.double()


def _bound(chain: Chain, exact: torch.Tensor, dtype: torch.dtype, x: torch.Tensor | None = None) -> torch.Tensor:
    """The largest error that float32 sums in any order may have, plus one rounding to `dtype`.

    A sum of n products of p factors is off by at most (n + p) units of roundoff of the sum of the absolute products, to
    first order; `eps` is two units, which covers the higher orders. The chain sums over blocks and k, with x also over
    columns; a product has at most 8 factors and roundings of its own (x, two scales, scale, U, V, sign, last sum).
    """
    terms = sum(getattr(block, "rank", 1) for block in chain.blocks) + len(chain.blocks) + 8
    size = absolute(chain)
    rounded_w = 0.0
    if x is not None:
        terms += chain.columns
        size = x.double().abs() @ size.T
        if x.is_cuda and len(x) > 2:  # W is rounded to x.dtype, and cuBLAS may round partial sums to it once more.
            rounded_w = 2 * torch.finfo(x.dtype).eps
    info = torch.finfo(dtype)
    if dtype != torch.float32:  # Triton may round U·scale to half precision, and a result again for each sparse block.
        sparse = sum(isinstance(block, SparseBlock) for block in chain.blocks)
        rounded_w += torch.finfo(torch.float16).eps + sparse * info.eps
        if (
            x is None or len(x) > 2
        ):  # On compute capability 9.0, so may every product of 16 columns and every sum of them.
            rounded_w += _segments(chain) * torch.finfo(torch.float16).eps
    slack = info.tiny * info.eps
    if dtype != torch.float32 and (x is None or len(x) > 2):
        small = _too_small(chain)
        slack = slack + (small if x is None else x.double().abs() @ small.T)
    if x is not None:
        slack = slack + _whole_numbers(chain, x)
    return (terms * torch.finfo(torch.float32).eps + rounded_w) * size + info.eps * exact.abs() + slack


def _segments(chain: Chain) -> int:
    """Of 16 columns of the factors each."""
    return sum(-(-block.rank // 16) for block in chain.blocks if not isinstance(block, SparseBlock))


def _too_small(chain: Chain) -> torch.Tensor:
    """The most that is lost of W to what is too small for half precision: float64 [rows, columns].

    On compute capability 9.0 a row of U, with its scales, is multiplied by a power of two so that no sum of its
    products leaves half precision: a bound on these becomes 2^13 at least. Half of the smallest step, 2^-25, is lost in
    each number of U, and in each product of 16 columns and sum of these.
    """
    total = torch.zeros(chain.rows, dtype=torch.float64, device=chain.device)
    largest, lost = total.clone(), 2.0 * _segments(chain)
    for block in chain.blocks:
        if not isinstance(block, SparseBlock):
            u = block.u.float().double().abs() * getattr(block, "gain", 1.0)
            u = u if block.scale is None else u * block.scale.double()
            v = block.v.float().double().abs().amax(0)
            total += u @ v
            largest = torch.maximum(largest, u.amax(1))
            lost = lost + v.sum()
    size = torch.maximum(total, largest) * chain.row_scale.double()
    return 2.0**-38 * lost * size[:, None] * chain.col_scale.double()


def _whole_numbers(chain: Chain, x: torch.Tensor) -> torch.Tensor:
    """The most that is lost where Z = diag(x·col_scale)·V is taken as whole numbers: float64 [tokens, rows].

    Half a step, in the sum of every column of the matrix. Triton's step is 1 / 32512 of the largest number of a column
    of V, and for float32 2^-24 of it, which does not show beside the rounding of the sums. On compute capability 9.0
    it is one of 13 bits of bfloat16's and 15 of float16's largest, where the largest is that of |x·col_scale| times
    that of V, of 256 columns at a time.
    """
    lost = torch.zeros(len(x), chain.rows, dtype=torch.float64, device=x.device)
    step, group = 1 / 32512 if x.dtype != torch.float32 else 2.0**-24, 1
    if x.is_cuda and x.dtype != torch.float32 and torch.cuda.get_device_capability(x.device) == (9, 0):
        step, group = 1 / ((1 << (13 if x.dtype == torch.bfloat16 else 15)) - 1), 256
    scaled = x.double().abs() * chain.col_scale.double()
    for block in chain.blocks:
        if not isinstance(block, SparseBlock):
            v = block.v.float().double().abs()
            parts = [(xs.amax(1), vs.amax(0)) for xs, vs in zip(scaled.split(group, 1), v.split(group), strict=True)]
            largest = torch.stack([xs[:, None] * vs for xs, vs in parts]).amax(0)
            u = block.u.float().double().abs() * getattr(block, "gain", 1.0)
            lost += largest @ (u if block.scale is None else u * block.scale.double()).T
    return lost * chain.row_scale.double() * (0.5 * step * chain.columns)


@pytest.fixture
def bound() -> Bound:
    return _bound


@pytest.fixture
def unpack() -> Callable[[SignBlock], torch.Tensor]:
    return signs


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[hopper.Variant], Kernel]:
    """The kernel of a variant, run on the CPU."""
    emulator.needed()

    @cache
    def made(variant: hopper.Variant) -> Kernel:
        folder = tmp_path_factory.mktemp("emulated")
        return emulator.Emulated(emulator.compile_kernel(variant.source(), "multiply", "Given", folder))

    return made


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=HOPPER)])
def bits_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where matrices lie that the kernels are for."""
    if request.param == "cuda":
        yield "cuda"
        return
    made = request.getfixturevalue("emulated")
    monkeypatch.setattr(hopper, "kernel_for", lambda variant, _: made(variant))
    kept = torch.zeros(1 << 13, dtype=torch.int64)
    monkeypatch.setattr(hopper, "running_sums", lambda count, _: kept[:count])
    emulator.make_tables(monkeypatch)
    yield "cpu"
    assert not kept.any(), "a kernel has not left its sums as zeros, as the next one needs them"
