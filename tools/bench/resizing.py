"""Random resizes under generation: ``python -m bitstack.tools.bench.resizing FILE --resizes 10000 > result.json``.

One thread resizes to plans drawn at random; others run forward passes and generate all the while. Before, every plan
is loaded afresh, and what the model computes with it is kept. Checked is:

- after every resize, that the model holds and computes, bit for bit, what the fresh load of this plan does;
- of every pass of the other threads, that its result is that of one plan: no pass has seen two;
- in the end, that the allocated bytes are back where they were at the beginning.

A check that fails ends the run with an error; the numbers are printed as JSON.
"""

import argparse
import gc
import hashlib
import json
import random
import re
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensor

import bitstack
import bsformat
from bsformat import Container

#: Tokens of the passes: few, which are multiplied without W, and more, for which W is rebuilt.
_PROMPTS = ([3, 1, 2], [5, 1, 4, 2, 3, 9, 8, 7, 6, 11, 10, 12])
_NEW_TOKENS = 6


class Wrong(Exception):
    """A check that failed."""


def fingerprints(model: Any) -> tuple[str, ...]:
    """Digests of the logits of each prompt, one pass each."""
    return tuple(_digest(model, number) for number in range(len(_PROMPTS)))


def _digest(model: Any, number: int) -> str:
    ids = torch.tensor([_PROMPTS[number]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    return hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()


def allocated(device: torch.device) -> int:
    """Bytes of all tensors: of the host counted from their storages, of a GPU by its allocator."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    # By type: some of the other objects of a process warn when asked for their class.
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.device.type == "cpu"]
    return sum(dict(map(_storage, tensors)).values())


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of a tensor's storage; zeros for those that torch.compile traces with, which have none."""
    if issubclass(type(tensor), FakeTensor):
        return 0, 0
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except RuntimeError:
        return 0, 0


def process_bytes() -> int | None:
    """Resident memory of this process, where Linux tells."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None


class _Users:
    """Threads that use a model until they are told to stop: one for each prompt, and one that generates."""

    def __init__(self, model: Any, known: dict[str, int]) -> None:
        self.model, self.known = model, known
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.seconds: list[float] = []
        self.held_back: list[float] = []
        self.plans: set[int] = set()
        self.generated = 0
        targets = [lambda n=n: self._passes(n) for n in range(len(_PROMPTS))]
        self._threads = [threading.Thread(target=self._guarded, args=(t,)) for t in (*targets, self._generate)]

    def __enter__(self) -> "_Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _guarded(self, target: Any) -> None:
        try:
            while not self.stop.is_set():
                target()
        except BaseException as error:
            self.error = error
            self.stop.set()

    def _passes(self, number: int) -> None:
        asked = time.perf_counter()
        with self.model.bitstack.frozen():  # a pass takes this itself; here, to tell waiting from computing
            started = time.perf_counter()
            digest = _digest(self.model, number)
        self.seconds.append(time.perf_counter() - started)
        self.held_back.append(started - asked)
        if digest not in self.known:
            raise Wrong(f"pass {len(self.seconds)}, of prompt {number}, computed what no plan does")
        self.plans.add(self.known[digest])

    def _generate(self) -> None:
        ids = torch.tensor([_PROMPTS[0]], device=self.model.device)
        with torch.inference_mode():
            out = self.model.generate(
                ids, max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS, do_sample=False, pad_token_id=0
            )
        self.generated += out.shape[1] - ids.shape[1]


def measure(
    container: Container,
    *,
    resizes: int,
    plans: int,
    seed: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Resize a model so many times, among so many plans.

    Raises:
        Wrong: a check failed.
    """
    draw, device = random.Random(seed), device or torch.device("cpu")
    required, every = container.index.required, container.available_blocks
    counts = list(range(required, every + 1))
    if len(counts) > plans:
        counts = sorted({required, every, *draw.sample(counts, plans - 2)})
    expected: dict[int, tuple[tuple[str, ...], int]] = {}
    wide = bitstack.load(container, "100%", device, dtype).bitstack.widening
    for count in counts:
        fresh = bitstack.load(container, _budget(container, count, wide), device, dtype)
        expected[count] = fingerprints(fresh), fresh.bitstack.resident_bytes
        del fresh
    known = {digest: count for count, (digests, _) in expected.items() for digest in digests}

    middle = counts[len(counts) // 2]
    model = bitstack.load(container, _budget(container, every, wide), device, dtype)
    elastic = model.bitstack
    fingerprints(model)
    elastic.resize(_budget(container, middle, wide))
    with _Users(model, known) as alone:
        _wait(alone, 20)
    before, process_before = allocated(device), process_bytes()
    moved, started = 0, time.monotonic()
    with _Users(model, known) as users:
        now = middle
        for number in range(resizes):
            count = draw.choice(counts)
            elastic.resize(_budget(container, count, wide))
            moved += abs(container.planner.resident_bytes(count) - container.planner.resident_bytes(now))
            now = count
            if (fingerprints(model), elastic.resident_bytes) != expected[count]:
                raise Wrong(f"resize {number}, to {count} blocks: not what a fresh load of them is")
            if users.stop.is_set():
                break
    seconds = time.monotonic() - started
    elastic.resize(_budget(container, middle, wide))
    after, process_after = allocated(device), process_bytes()
    if after != before:
        raise Wrong(f"{after} bytes are allocated, {before} were before the first resize")
    return {
        "resizes": resizes,
        "plans": len(counts),
        "blocks": every,
        "bytes_added_and_dropped": moved,
        "passes_by_others": len(users.seconds),
        "plans_seen_by_others": len(users.plans),
        "tokens_generated_by_others": users.generated,
        "allocated_before": before,
        "allocated_after": after,
        "process_bytes_before": process_before,
        "process_bytes_after": process_after,
        "seconds": round(seconds, 1),
        "pass_ms": {"resizing": _milliseconds(users.seconds), "alone": _milliseconds(alone.seconds)},
        "held_back_ms": {"resizing": _milliseconds(users.held_back), "alone": _milliseconds(alone.held_back)},
    }


def _budget(container: Container, count: int, wide: int) -> int:
    return container.planner.resident_bytes(count) + wide


def _wait(users: _Users, passes: int) -> None:
    while len(users.seconds) < passes and not users.stop.is_set():
        time.sleep(0.01)


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": round(1e3 * statistics.median(ordered), 2),
        "p99": round(1e3 * ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max": round(1e3 * ordered[-1], 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--resizes", type=int, default=10_000)
    parser.add_argument("--plans", type=int, default=40, help="at most so many different ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"))
    args = parser.parse_args()
    from bitstack.tools.console import quiet_libraries
    from bitstack.tools.devices import find_device, find_dtype, hardware, versions

    quiet_libraries()
    device = find_device(args.device)
    with bsformat.open(args.uri) as container:
        row = measure(
            container,
            resizes=args.resizes,
            plans=args.plans,
            seed=args.seed,
            device=device,
            dtype=find_dtype(args.dtype),
        )
    print(
        json.dumps(
            {"file": Path(args.uri).name} | row | {"hardware": hardware(device), "versions": versions()}, indent=2
        )
    )


if __name__ == "__main__":
    main()
