"""How fast a model writes: ``python -m bitstack.tools.bench.decoding FILE --dense MODEL --budget 80MiB --device cpu``.

Loads the file within the budget, and the dense model that it was packed from. Each reads the same prompt and then
writes token after token with its cache, always the one that it holds most likely; the two take turns, so that what else
the machine does meets both. Prints as JSON, for each number of threads, tokens per second (of the median token) and the
time of the prompt, resident bytes and workspace, and the largest error of any packed matrix against float64.
"""

import argparse
import json
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any, Final

import torch

import bitstack
from bitstack import kernels
from bitstack.checkpoint import open_checkpoint
from bitstack.packed import PackedTensor
from bitstack.tools.console import quiet_libraries
from bitstack.tools.devices import default_dtype, find_device, find_dtype, hardware, versions
from bsformat import parse_size

PROMPT: Final = "The library opened at nine, and by ten every table in the reading room was taken. Rain ran down"
TOLERANCE: Final = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative error of a product that would be a fault and not rounding."""


def decode(model: Any, ids: torch.Tensor, tokens: int) -> tuple[float, list[float]]:
    """Read a prompt, then write ``tokens`` tokens: the seconds of the prompt, and of each token."""
    cache, marks = None, [time.perf_counter()]
    with torch.inference_mode():
        for _ in range(tokens + 1):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
            # Reading the number waits for the device.
            ids.item()
            marks.append(time.perf_counter())
    prompt, *steps = [after - before for before, after in pairwise(marks)]
    return prompt, steps


def packed_tensors(model: torch.nn.Module) -> list[PackedTensor]:
    """The packed tensors of a model, those that several layers share once."""
    found = [getattr(module, "packed", None) for module in model.modules()]
    return list({id(packed): packed for packed in found if isinstance(packed, PackedTensor)}.values())


def largest_error(tensors: list[PackedTensor], dtype: torch.dtype) -> float:
    """The largest ‖y − exact‖ / ‖exact‖ of y = x·Wᵀ over all chains, for a random x each."""
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for chain in (chain for tensor in tensors for chain in tensor.chains if chain.blocks):
        x = torch.randn(1, chain.columns, generator=generator).to(chain.device, dtype)
        exact = x.double() @ kernels.rebuild(chain, dtype=torch.float64, backend="reference").T
        error = (kernels.linear(x, chain).double() - exact).norm() / exact.norm()
        largest = max(largest, float(error))
    return largest


def rate(runs: list[tuple[float, list[float]]]) -> dict[str, float]:
    """What several runs of `decode` come to."""
    steps = [step for _, run in runs for step in run]
    return {
        "tokens_per_second": 1 / statistics.median(steps),
        "median_milliseconds": 1e3 * statistics.median(steps),
        "mean_milliseconds": 1e3 * statistics.mean(steps),
        "prompt_milliseconds": 1e3 * min(prompt for prompt, _ in runs),
    }


def workspace(device: torch.device) -> int:
    """Bytes that the kernels hold between calls apart from the weights."""
    if "numba" not in kernels.available_backends(device):
        return 0
    from bitstack.kernels.numba_path import workspace_bytes

    return workspace_bytes()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All that is printed, machine and versions apart."""
    device = find_device(args.device)
    dtype = find_dtype(args.dtype) or default_dtype(device)
    packed = bitstack.load(args.file, parse_size(args.budget), device, dtype=dtype)
    dense: Any = open_checkpoint(args.dense).model.to(device=device, dtype=dtype).eval()
    error = largest_error(packed_tensors(packed), dtype)
    if not error <= TOLERANCE[dtype]:
        raise SystemExit(f"a product is off by {error:.3g} of its size: its speed does not count")
    ids = packed.bitstack.tokenizer()(PROMPT, return_tensors="pt").input_ids.to(device)
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        runs: dict[str, list[tuple[float, list[float]]]] = {"packed": [], "dense": []}
        for model in (packed, dense):
            decode(model, ids, 2)
        for _ in range(args.repeats):
            for name, model in (("packed", packed), ("dense", dense)):
                runs[name].append(decode(model, ids, args.tokens))
        row: dict[str, Any] = {"threads": threads} | {name: rate(run) for name, run in runs.items()}
        rows.append(row | {"ratio": row["packed"]["tokens_per_second"] / row["dense"]["tokens_per_second"]})
    parameters = {parameter.data_ptr(): parameter.nbytes for parameter in dense.parameters()}
    return {
        "budget": parse_size(args.budget),
        "root": packed.bitstack.container.root,
        "dtype": str(dtype).removeprefix("torch."),
        "prompt_tokens": ids.numel(),
        "tokens": args.tokens,
        "repeats": args.repeats,
        "backend": kernels.available_backends(device)[0],
        "largest_relative_error": error,
        "resident_bytes": {"packed": packed.bitstack.resident_bytes, "dense": sum(parameters.values())},
        "workspace_bytes": workspace(device),
        "rows": rows,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the packed file")
    parser.add_argument("--dense", required=True, help="the dense model that it was packed from")
    parser.add_argument("--budget", default="80MiB", help="resident bytes of the packed model (80MiB)")
    parser.add_argument("--device", default="cpu", help="where both run (cpu)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="what both compute in")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that each writes in a turn (32)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each (3)")
    parser.add_argument(
        "--threads",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1, 2],
        help="numbers of threads, separated by commas (1,2)",
    )
    args = parser.parse_args()
    quiet_libraries()
    out = measure(args)
    # The threads are those of each row.
    machine = {key: value for key, value in hardware(torch.device(args.device)).items() if key != "threads"}
    try:
        compiler = {"numba": version("numba")}
    except PackageNotFoundError:
        compiler = {}
    print(json.dumps(out | {"hardware": machine, "versions": versions() | compiler}, indent=2))


if __name__ == "__main__":
    main()
