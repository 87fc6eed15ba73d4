"""Every operation on the CPU in code that numba compiles: W is never formed for few tokens, the signs are read once.

For each run of planes on the same factors, the planes of a row are first added up to its codes, whole numbers. These
are multiplied by Z = diag(x·c)·V·diag(scale), one multiplication of 16 columns for each rank, and the row's U comes in
once at its end (see `numba_vectors`). Blocks of rank 8 on matrices of many rows go by look-ups instead (see
`numba_tables`). For more tokens W is rebuilt in tiles of rows, which stay in cache, and torch multiplies them.

The work is split over rows; a row's sum has one order, so the result does not depend on the number of threads. These
are torch's own, as many as `torch.get_num_threads` says. The calling thread works alone where torch's OpenMP is not
found and while the processors are busy with something else (see `_Patience`).

Held between calls are a workspace for each calling thread (see Z), and for each chain its plan: 100 bytes a block.
"""

import threading
import time
from collections.abc import Iterator
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .blocks import SignBlock
from .chain import Block, Chain
from .float8 import e4m3_values
from .numba_items import BF16, F8, F16, F32, HEAD, ITEM
from .numba_loops import TASK, run, scratch_bytes, work
from .numba_vectors import LANES, PLANES
from .sparse import SparseBlock
from .threads import openmp_parallel

FEW_TOKENS: Final = 4
"""Up to this number of tokens W is not formed."""
Z: Final = 1 << 17
"""Float32 (512 KiB) of Z that are held at a time, unless one block needs more for one token."""
TILE: Final = 1 << 19
"""Elements (2 MiB) of a tile of W, unless one row is larger."""
SMALL: Final = 1 << 14
"""Bytes of signs that one thread works on faster than several."""

LATE: Final = 1e-3
"""Seconds by which a call of several threads is late, beyond what one thread could need."""
SLOWEST: Final = 3e-9
"""Seconds that one thread could need for a byte of signs and a token."""
PAUSE: Final = 0.05
"""Seconds without other threads after a call that was late, the first time."""
MOST_PAUSE: Final = 1.0
"""The longest such time, in seconds."""

_TYPES: Final = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16, torch.float8_e4m3fn: F8}


class Plan:
    """The addresses and sizes of a chain, in the order that `numba_loops` reads them.

    It does not keep the chain's tensors: it lives with the chain, which does.

    Attributes:
        address: of the numbers.
        work: bytes of signs and factors, by which threads are given.
        widest: float32 of Z that the largest block needs for one token.
    """

    def __init__(self, chain: Chain) -> None:
        runs = _runs(chain.blocks)
        row_bytes = (chain.columns + 7) // 8
        self._numbers = np.zeros(HEAD + ITEM * len(runs), np.int64)
        self._gains = np.ones((len(runs), PLANES), np.float32)
        scales = chain.row_scale, chain.col_scale
        described = [number for scale in scales for number in (scale.data_ptr(), _TYPES[scale.dtype])]
        self._numbers[:HEAD] = (chain.rows, chain.columns, row_bytes, *described, len(runs))
        self.work, self.widest = 0, 0
        for number, blocks in enumerate(runs):
            start = HEAD + ITEM * number
            item = _sparse_item(blocks[0]) if isinstance(blocks[0], SparseBlock) else self._product(number, blocks)
            self._numbers[start : start + len(item)] = item
        self.address = self._numbers.ctypes.data
        self.scratch = scratch_bytes(self.address)

    def _product(self, number: int, blocks: list[Block]) -> list[int]:
        first = blocks[0]
        if isinstance(first, SparseBlock):
            raise TypeError("a sparse block is no product")
        planes = [block for block in blocks if isinstance(block, SignBlock)]
        self._gains[number, : len(planes)] = [block.gain for block in planes]
        self.work += sum(block.signs.nbytes for block in planes)
        self.widest = max(self.widest, -(-first.v.shape[0] // LANES) * LANES * (first.rank + 7))
        scale = 0 if first.scale is None else first.scale.data_ptr()
        head = [0, len(planes), first.rank, _TYPES[first.u.dtype], first.u.data_ptr(), first.v.data_ptr(), scale]
        return [*head, self._gains[number].ctypes.data, *(block.signs.data_ptr() for block in planes)]


def _sparse_item(block: SparseBlock) -> list[int]:
    tensors = block.scale, block.starts, block.offsets, block.indices, block.values
    return [1, block.entries, block.offsets.dtype == torch.int32, *(tensor.data_ptr() for tensor in tensors)]


def _runs(blocks: tuple[Block, ...]) -> list[list[Block]]:
    """Return the blocks in order, planes that go on from one to the next together, up to PLANES of them."""
    runs: list[list[Block]] = []
    for block in blocks:
        last = runs[-1][-1] if runs else None
        if (
            isinstance(block, SignBlock)
            and isinstance(last, SignBlock)
            and (block.u is last.u and block.v is last.v and block.scale is last.scale)
            and (last.gain == 2 * block.gain and len(runs[-1]) < PLANES)
        ):
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


_plans: WeakKeyDictionary[Chain, Plan] = WeakKeyDictionary()
_held = threading.local()


def _plan(chain: Chain) -> Plan:
    plan = _plans.get(chain)
    if plan is None:
        plan = _plans[chain] = Plan(chain)
    return plan


def _workspace(size: int) -> int:
    """Return the address of at least `size` bytes that belong to the calling thread."""
    held: torch.Tensor | None = getattr(_held, "bytes", None)
    if held is None or held.numel() < size:
        held = _held.bytes = torch.empty(size, dtype=torch.uint8)
    return held.data_ptr()


def workspace_bytes() -> int:
    """Return the bytes that are held between calls: the calling thread's workspace, and the plans of all chains."""
    held: torch.Tensor | None = getattr(_held, "bytes", None)
    plans = sum(plan._numbers.nbytes + plan._gains.nbytes for plan in _plans.values())
    return (0 if held is None else held.numel()) + plans


class _Patience:
    """When to work alone: threads that must wait for a processor delay every call until all have had one.

    A call that took much longer than it could need is followed by a time without other threads, twice as long after
    each such call. The result is the same either way.
    """

    def __init__(self) -> None:
        self.until, self.pause = 0.0, PAUSE

    def allows(self, now: float) -> bool:
        """Whether several threads may be tried."""
        return now >= self.until

    def note(self, now: float, late: bool) -> None:
        """Take in whether a call of several threads that ended now was late."""
        if late:
            self.until = now + self.pause
        self.pause = min(2 * self.pause, MOST_PAUSE) if late else max(self.pause / 2, PAUSE)


_patience = _Patience()


def _run(chain: Chain, plan: Plan, first: int, end: int, tokens: int, x: int, target: int, whole: bool) -> None:
    parallel, started = openmp_parallel(), time.monotonic()
    threads = torch.get_num_threads() if parallel and plan.work >= SMALL else 1
    if threads > 1 and not _patience.allows(started):
        threads = 1
    z = max(Z, tokens * plan.widest)
    space = _workspace(8 * TASK + 4 * tokens * (chain.columns + LANES) + threads * plan.scratch + 4 * z)
    run(plan.address, first, end, tokens, x, target, whole, space, Z, threads, _E4M3, parallel, work)
    if threads > 1:
        ended, part = time.monotonic(), plan.work * (end - first) // chain.rows
        _patience.note(ended, ended - started > LATE + SLOWEST * part * (4 if whole else tokens))


_E4M3: Final = e4m3_values().data_ptr()


def linear(x: torch.Tensor, chain: Chain, out: torch.Tensor) -> None:
    """Write x·Wᵀ to `out` [tokens, rows] for x [tokens, columns], summed in float32."""
    x = (x if x.dtype == torch.float32 else x.float()).contiguous()
    y = out if out.dtype == torch.float32 else torch.empty(out.shape)
    plan, tokens = _plan(chain), len(x)
    step = max(1, Z // max(1, plan.widest))
    if tokens > FEW_TOKENS:
        _through_tiles(x, chain, y)
    elif tokens <= step:
        _run(chain, plan, 0, chain.rows, tokens, x.data_ptr(), y.data_ptr(), False)
    else:
        for start in range(0, tokens, step):
            part, target = x[start : start + step], y[start : start + step]
            _run(chain, plan, 0, chain.rows, len(part), part.data_ptr(), target.data_ptr(), False)
    if y is not out:
        out.copy_(y)


def _through_tiles(x: torch.Tensor, chain: Chain, y: torch.Tensor) -> None:
    for start, w in _tiles(chain):
        torch.mm(x, w.T, out=y[:, start : start + len(w)])


def _tiles(chain: Chain) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield W in tiles, each with its first row; a tile is overwritten by the next."""
    step = min(chain.rows, max(1, TILE // chain.columns))
    tile, plan = torch.empty(step, chain.columns), _plan(chain)
    for start in range(0, chain.rows, step):
        stop = min(start + step, chain.rows)
        _run(chain, plan, start, stop, 1, 0, tile.data_ptr(), True)
        yield start, tile[: stop - start]


def rebuild(chain: Chain, out: torch.Tensor) -> None:
    """Write W to `out` [rows, columns], summed in float32."""
    if out.dtype == torch.float32:
        _run(chain, _plan(chain), 0, chain.rows, 1, 0, out.data_ptr(), True)
        return
    for start, w in _tiles(chain):
        out[start : start + len(w)] = w
