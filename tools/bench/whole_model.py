"""Tokens per second of a whole model: ``python -m bitstack.tools.bench.whole_model --device cuda > result.json``.

A model of the shape of Llama 3.1 8B with random weights decodes one sequence greedily, one CUDA graph a token: as
chains at several budgets, in bfloat16, and in PyTorch's int4. These two are measured as such models are loaded, every
matrix by itself, and ``-joined``, where those that are multiplied by the same x are one matrix. Every resident byte of
weights counts; the cache of keys and values does not. At the first budget the model is also resized, to the second and
back, while its graph stays: timed until all tables are written, and until a replay has ended that computed with the new
weights; then compared, bit by bit, with a graph that is captured anew.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

VARIANTS: Final = ("packed", "bf16", "int4", "bf16-joined", "int4-joined")
BUDGETS: Final = "3.6GiB,4.5GiB,5.5GiB"
WARM: Final = 8
#: Steps after which logits are compared.
COMPARED: Final = 3


class Steps:
    """The steps of a decoder: replays of a graph on CUDA, calls elsewhere."""

    def __init__(self, decoder: Any, device: Any) -> None:
        from .timing import captured

        self.decoder, self.device = decoder, device
        decoder.reset()
        decoder.step()  # compiles
        self.graph = captured([decoder.step]) if device.type == "cuda" else None

    def __call__(self) -> None:
        """One token."""
        if self.graph is None:
            self.decoder.step()
        else:
            self.graph.replay()

    def logits(self) -> Any:
        """Logits after the first few tokens of a new sequence, float32 [1, vocabulary]."""
        self.decoder.reset()
        for _ in range(COMPARED):
            self()
        return self.decoder.logits.clone()

    def seconds(self, number: int) -> list[float]:
        """Seconds of each of `number` tokens in a row."""
        from .timing import replayed, synchronize

        self.decoder.reset()
        for _ in range(WARM):
            self()
        synchronize(self.device)
        if self.graph is not None:
            return [sample / 1e3 for sample in replayed(self.graph, number)]
        samples = []
        for _ in range(number):
            started = time.perf_counter()
            self()
            samples.append(time.perf_counter() - started)
        return samples


def speed(model: Any, steps: Steps, number: int) -> dict[str, Any]:
    """What one model costs: the row of the report.

    Raises:
        RuntimeError: its logits are not finite.
    """
    import statistics

    import torch

    if not torch.isfinite(steps.logits()).all():
        raise RuntimeError("the logits are not finite")
    samples = steps.seconds(number)
    row: dict[str, Any] = {
        "resident_bytes": model.nbytes,
        "tokens_per_second": round(len(samples) / sum(samples), 2),
        "milliseconds": round(1e3 * statistics.median(samples), 4),
        "least": round(1e3 * min(samples), 4),
        "steps": len(samples),
    }
    if steps.device.type == "cuda":
        row["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(steps.device)
    row |= model.notes
    return row


def resized(model: Any, steps: Steps, bits: Sequence[int], now: Sequence[int]) -> dict[str, Any]:
    """Grow a packed model from `now` bits a matrix to `bits` and shrink it again, under the same graph."""
    import torch

    from .random_chains import random_bytes
    from .timing import synchronize

    signs = [chain.rows * ((chain.columns + 7) // 8) for chain in model.chains]
    payloads = [
        [random_bytes(size, steps.device) for _ in range(new - old)]
        for size, old, new in zip(signs, now, bits, strict=True)
    ]
    before, small = steps.logits(), list(model.chains)
    synchronize(steps.device)

    started = time.perf_counter()
    for number, more in enumerate(payloads):
        for payload in more:
            model.chains[number] = model.chains[number].add("plane", payload)
        if more:
            model.tables[number].update(model.chains[number])
    grown = time.perf_counter() - started
    steps()
    synchronize(steps.device)
    grown_and_used = time.perf_counter() - started

    large, size = steps.logits(), sum(chain.nbytes for chain in model.chains)
    fresh = Steps(model.decoder, steps.device).logits()
    synchronize(steps.device)

    started = time.perf_counter()
    for number, more in enumerate(payloads):
        if more:
            model.chains[number] = small[number]
            model.tables[number].update(small[number])
    shrunk = time.perf_counter() - started
    steps()
    synchronize(steps.device)
    shrunk_and_used = time.perf_counter() - started

    return {
        "tables": sum(map(bool, payloads)),
        "blocks": sum(map(len, payloads)),
        "bytes_more": size - sum(chain.nbytes for chain in small),
        "grow_milliseconds": round(1e3 * grown, 3),
        "grow_until_used_milliseconds": round(1e3 * grown_and_used, 3),
        "shrink_milliseconds": round(1e3 * shrunk, 3),
        "shrink_until_used_milliseconds": round(1e3 * shrunk_and_used, 3),
        "logits_changed": not torch.equal(before, large),
        "as_a_new_graph": torch.equal(large, fresh),
        "back_as_before": torch.equal(before, steps.logits()),
    }


def run(
    shape: Any,
    variants: Sequence[str],
    budgets: Sequence[int],
    steps: int,
    device: Any,
    backend: str,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure every variant, each freed before the next; a row for each."""
    from functools import partial

    from . import variants as makers

    as_chain = makers.packed_embedding(device, backend)
    fixed = makers.embedding_bytes(shape, as_chain) + 2 * (2 * shape.layers + 1) * shape.hidden
    plans = {budget: makers.planned(shape, budget, fixed) for budget in budgets if "packed" in variants}
    most = [max(bits) for bits in zip(*plans.values(), strict=True)]
    todo: list[tuple[dict[str, Any], Callable[[], Any], Sequence[Sequence[int]]]] = []
    for number, (budget, bits) in enumerate(plans.items()):
        make: Callable[[], Any] = partial(makers.packed, shape, bits, most, as_chain, device, backend)
        larger = list(plans.values())[1:2] if number == 0 else []
        todo.append(({"variant": "packed", "budget": budget}, make, [*larger, bits]))
    for name in variants:
        if name != "packed":
            kind: Any = makers.int4 if name.startswith("int4") else makers.dense
            todo.append(({"variant": name}, partial(kind, shape, device, name.endswith("joined")), []))
    rows = []
    for head, maker, bits_of in todo:
        row = head | _measured(maker, steps, bits_of, device, note)
        rows.append(row)
        said = (
            row.get("failed") or f"{row['tokens_per_second']:.1f} tokens/s in {row['resident_bytes'] / 2**30:.2f} GiB"
        )
        note(f"{' '.join(str(part) for part in head.values())}: {said}")
    return rows


def _measured(
    make: Callable[[], Any],
    number: int,
    bits_of: Sequence[Sequence[int]],
    device: Any,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """One variant; nothing of it stays. `bits_of` is larger bits and its own, where it is to be resized."""
    import torch

    model: Any = None
    steps: Any = None
    try:
        model = make()
        note("made")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        steps = Steps(model.decoder, device)
        note("captured")
        row = speed(model, steps, number)
        if len(bits_of) == 2:
            row["resize"] = resized(model, steps, *bits_of)
            note(f"resized: {row['resize']}")
    except Exception as error:  # the other variants are measured all the same
        row = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    model = steps = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("8b", "tiny"), default="8b")
    parser.add_argument("--budgets", default=BUDGETS, help="of the packed model, rising, separated by commas")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--steps", type=int, default=128, help="tokens that are timed")
    parser.add_argument("--backend", default="auto", help="of the kernels")
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    variants = args.variants.split(",")
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    import torch

    from bitstack.tools.devices import find_device
    from bsformat import parse_size

    from .decoder import SHAPES
    from .kernels import progress
    from .report import machine, printed
    from .timing import method, own_stream

    device, note, shape = find_device(args.device), progress(time.monotonic()), SHAPES[args.model]
    if not 1 <= args.steps <= shape.positions - WARM:
        parser.error(f"--steps must be 1 to {shape.positions - WARM}")
    budgets = [parse_size(text) for text in args.budgets.split(",")]
    torch.manual_seed(0)
    with torch.no_grad(), own_stream(device):
        rows = run(shape, variants, budgets, args.steps, device, args.backend, note)
    print(printed({"model": args.model, "models": rows, "method": method(device)} | machine(device)))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
