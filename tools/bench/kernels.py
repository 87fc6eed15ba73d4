"""What a product with a chain of blocks costs: ``python -m bitstack.tools.bench.kernels --device cuda > result.json``.

Microseconds of y = x·Wᵀ, everything from x to y, by replay of CUDA graphs whose calls rotate over copies of the
weights that together are three times the L2 cache and more; beside them what `anchors` has, and the memory floor: the
bytes that the chain, x and y take, over the bandwidth of a copy measured in the same run. Every row was compared with
float64 before it was timed; a wrong one has no time and makes the command fail. On a CPU the wall clock measures, for
tests.

A profiler needs no graphs and no anchors: ``--once`` makes one kind of chain and runs a few products between the start
and stop that ncu waits for. DRAM bytes and instructions per sign of the kernel::

    ncu --profile-from-start off --metrics gpu__time_duration.sum,dram__bytes_read.sum,smsp__inst_executed.sum,\\
sm__inst_executed_pipe_alu.sum,sm__inst_executed_pipe_fma.sum,sm__inst_executed_pipe_lsu.sum,\\
sm__inst_executed_pipe_tensor.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,\\
lts__throughput.avg.pct_of_peak_sustained_elapsed,l1tex__throughput.avg.pct_of_peak_sustained_elapsed,\\
sm__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread,launch__occupancy_limit_registers \\
      python -m bitstack.tools.bench.kernels --once 14336x4096 --blocks 4 --only default --device cuda

Names differ a little between families of GPUs: ``ncu --query-metrics | grep pipe_tensor`` lists them. An instruction is
executed by 32 threads at once, so instructions per sign are 32 · smsp__inst_executed.sum / (rows · columns · blocks).
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

SHAPES: Final = ((4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096))
#: Too small to be measured with more tokens unless these are asked for.
SMALL: Final = (1024, 4096)
#: The shape that is measured in float16 too, with one token.
HALF: Final = (14336, 4096)
BLOCKS: Final = (1, 2, 3, 4, 6, 8)
TOKENS: Final = (1, 2, 4, 8, 16, 512, 2048)
#: Blocks with more tokens than one.
MORE_TOKENS_BLOCKS: Final = (4,)
ROTATE: Final = 180_000_000
#: Copies of one case, at most: of matrices smaller than those of `SHAPES` they stay in the cache.
COPIES: Final = 512
ANCHOR_SLACK: Final = 3.0
REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a kind of chain or, with 0 blocks, an anchor, at a shape."""

    name: str
    rows: int
    columns: int
    tokens: int
    blocks: int
    dtype: str = "bfloat16"

    def row(self) -> dict[str, Any]:
        """For a report."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        blocks = f", {_counted(self.blocks, 'block')}" if self.blocks else ""
        tokens = _counted(self.tokens, "token")
        return f"{self.rows}x{self.columns}, {tokens}{blocks}, {self.dtype}, {self.name}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def cases(
    only: Sequence[str],
    shapes: Sequence[tuple[int, int]] | None = None,
    blocks: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
) -> Iterator[Case]:
    """The rows to measure, in order; None stands for the default choice, which has not every combination."""
    from .anchors import ANCHORS

    chains = [name for name in only if name not in ANCHORS]
    anchors = [name for name in only if name in ANCHORS]
    for rows, columns in shapes or SHAPES:
        for number in tokens or (TOKENS if (rows, columns) != SMALL else TOKENS[:1]):
            for dtype in ("bfloat16", "float16") if number == 1 and (rows, columns) == HALF else ("bfloat16",):
                yield from (Case(name, rows, columns, number, 0, dtype) for name in anchors)
                for count in blocks or (BLOCKS if number == 1 else MORE_TOKENS_BLOCKS):
                    yield from (Case(name, rows, columns, number, count, dtype) for name in chains)


class Bench:
    """Measures cases on a device.

    Attributes:
        bandwidth: bytes per second of a copy.
        rotate: bytes that the copies of a case have together, at least.
    """

    def __init__(self, device: Any, backend: str = "auto") -> None:
        import torch

        from .timing import copy_bandwidth

        self.device, self.backend = device, backend
        self.bandwidth = copy_bandwidth(device)
        self.l2 = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        self.rotate = max(3 * self.l2, ROTATE) if device.type == "cuda" else 0

    def prepared(self, case: Case) -> tuple[list[Callable[[], Any]], dict[str, Any]]:
        """The calls of a case, the first of them compared with float64, and what is known about it before its time.

        Raises:
            Unavailable: an anchor does not run here. WrongResult: it is not the product.
        """
        import torch

        from .accuracy import check, errors_of
        from .anchors import ANCHORS

        dtype = getattr(torch, case.dtype)
        make = self._anchor if case.name in ANCHORS else self._chain
        run, dense, size = make(case, dtype)
        moved = size + (case.columns + case.rows) * case.tokens * dtype.itemsize
        copies = min(COPIES, max(2, -(-self.rotate // moved)))
        calls: list[Callable[[], Any]] = []
        for number in range(copies):
            x = torch.randn(case.tokens, case.columns, device=self.device).to(dtype)
            calls.append(partial(run, x))
            if number == 0:
                errors = errors_of(run(x), x, dense())
                check(errors, dtype, ANCHOR_SLACK if case.name in ANCHORS else 1.0)
                del dense
            if number + 1 < copies:
                run = make(case, dtype)[0]
        floor = 1e6 * moved / self.bandwidth
        return calls, {"nbytes": size, "copies": copies, **errors, "floor": round(floor, 3)}

    def _anchor(self, case: Case, dtype: Any) -> tuple[Callable[[Any], Any], Callable[[], Any], int]:
        from .anchors import ANCHORS

        product = ANCHORS[case.name](case.rows, case.columns, dtype, self.device)
        return product.run, product.dense, product.nbytes

    def _chain(self, case: Case, dtype: Any) -> tuple[Callable[[Any], Any], Callable[[], Any], int]:
        import torch

        from bitstack import kernels

        from .random_chains import random_chain

        chain = random_chain(case.name, case.rows, case.columns, case.blocks, self.device)
        out = torch.full((case.tokens, case.rows), torch.nan, dtype=dtype, device=self.device)

        def run(x: Any) -> Any:
            return kernels.linear(x, chain, out=out, backend=self.backend)

        return run, partial(kernels.rebuild, chain, dtype=torch.float64, backend="reference"), chain.nbytes

    def row(self, case: Case) -> dict[str, Any]:
        """A case measured; without a time, and why, where it could not be."""
        from .accuracy import WrongResult
        from .anchors import Unavailable
        from .timing import CALLS, measure

        try:
            calls, known = self.prepared(case)
            # A prefill takes as long as many launches.
            timing = measure(calls, self.device, least_calls=CALLS if case.tokens <= 16 else 1)
        except Unavailable as reason:
            return case.row() | {"skipped": str(reason)}
        except WrongResult as reason:
            return case.row() | {"refused": str(reason)}
        except Exception as error:  # one kernel that fails must not take the others' times along
            return case.row() | {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        return case.row() | known | timing.row() | {"floor_share": round(known["floor"] / timing.median, 4)}


def run(bench: Bench, todo: Sequence[Case], seconds: float, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure cases until the time is over; the body of the report."""
    from .timing import method

    started, rows = time.monotonic(), []
    for number, case in enumerate(todo):
        if time.monotonic() - started > seconds:
            note(f"stopped after {seconds:.0f} s: {len(todo) - number} cases are left out")
            break
        row = bench.row(case)
        rows.append(row)
        said = row.get("skipped") or row.get("refused") or f"{row['microseconds']:.2f} µs (floor {row['floor']:.2f})"
        note(f"{number + 1}/{len(todo)} {case}: {said}")
    return {
        "rows": rows,
        "left_out": [case.row() for case in todo[len(rows) :]],
        "copy_bandwidth": round(bench.bandwidth),
        "l2_bytes": bench.l2,
        "rotated_bytes": bench.rotate,
        "method": method(bench.device),
    }


def once(bench: Bench, case: Case) -> None:
    """A few products without a graph, for a profiler that waits for the start of profiling."""
    import torch

    from .timing import synchronize

    cuda: Any = torch.cuda
    calls, _ = bench.prepared(case)
    for call in calls[:REPEATS]:
        call()
    synchronize(bench.device)
    if bench.device.type == "cuda":
        cuda.profiler.start()
    for call in calls[:REPEATS]:
        call()
    synchronize(bench.device)
    if bench.device.type == "cuda":
        cuda.profiler.stop()


def progress(start: float) -> Callable[[str], None]:
    """Lines on stderr with the seconds since a start."""
    return lambda text: print(f"[{time.monotonic() - start:6.1f} s] {text}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return _positive(rows), _positive(columns)


def _listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parsed(text: str) -> list[Any]:
        return [kind(item) for item in text.split(",")]

    parsed.__name__ = "list"
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    from .anchors import ANCHORS
    from .random_chains import KINDS

    names = [*ANCHORS, *KINDS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=_listed(_shape), help="rows and columns, as 4096x4096,1024x4096")
    parser.add_argument("--blocks", type=_listed(_positive), help="numbers of blocks, or of bits, separated by commas")
    parser.add_argument("--tokens", type=_listed(_positive), help="separated by commas")
    parser.add_argument("--only", metavar="NAME,…", type=_listed(str), default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--once", metavar="SHAPE", type=_shape, help="run one case a few times, for a profiler")
    parser.add_argument("--backend", default="auto", help="of the kernels")
    parser.add_argument("--seconds", type=float, default=300, help="begin no case after so long")
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    import torch

    from bitstack.tools.devices import find_device

    from .report import machine, printed
    from .timing import own_stream

    device, note = find_device(args.device), progress(time.monotonic())
    torch.manual_seed(0)
    with torch.no_grad(), own_stream(device):
        bench = Bench(device, args.backend)
        note(f"copies {bench.bandwidth / 1e12:.3f} TB/s")
        if args.once:
            chain = next((name for name in args.only if name in KINDS and args.only != names), "default")
            blocks, tokens = (args.blocks or [4])[0], (args.tokens or [1])[0]
            rows, columns = args.once
            once(bench, Case(chain, rows, columns, tokens, blocks))
            return 0
        body = run(bench, list(cases(args.only, args.shapes, args.blocks, args.tokens)), args.seconds, note)
    print(printed(body | machine(device)))
    return int(any("refused" in row for row in body["rows"]))


if __name__ == "__main__":
    sys.exit(main())
