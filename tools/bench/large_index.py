"""Opening a file of very many blocks: ``python -m bitstack.tools.bench.large_index --folder DIR``.

Makes a file like one of a large mixture of experts, 300,000 blocks by default, all of them a hole of zeros: nothing
here reads them. Each reading is a process of its own, over a local path and over HTTP; what is printed as JSON is, for
each, the medians of its seconds, its requests and bytes, and its peak memory above that before opening (Linux). Where
``--javascript`` names the folder of the JavaScript reader, that one is measured too.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitstack.tools.serve_ranges import RangeServer
from bsformat import Form, Tensor, codec, index, metadata, superblock
from bsformat.index import Index
from bsformat.metadata import Metadata, number_chains
from bsformat.payload import length
from bsformat.registry import align

from .report import machine, printed

FORMS = (Form("raw"), Form("sign", rank=1, factors="F16"))
ROWS = COLUMNS = 64
#: Matrices, and levels of each; each has two scale vectors besides.
EXPERTS, LEVELS = 30_000, 8

#: What a process of its own runs: it opens the file of its first argument, plans, and prints what that took.
PROGRAM = """
import json, re, sys, time
import bsformat
def peak():
    return 1024 * int(re.search("VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
began = time.perf_counter()
file = bsformat.open(sys.argv[1], cache=False)
opened = time.perf_counter() - began
plans = []
for percent in range(25, 101, 5):
    began = time.perf_counter()
    file.plan(f"{percent}%")
    plans.append(time.perf_counter() - began)
print(json.dumps({
    "blocks": len(file), "open_seconds": opened, "first_plan_seconds": plans[0], "slowest_plan_seconds": max(plans),
    "requests": file.source.requests, "bytes": file.source.bytes_read, "peak_bytes": peak() - before,
}))
"""


def make(path: Path, experts: int, levels: int) -> int:
    """Write the file and give the bytes of its head, decoded."""
    tensors = []
    for i in range(experts):
        name = f"model.layers.{i // 768}.mlp.experts.{i // 3 % 256}.{('gate', 'up', 'down')[i % 3]}_proj"
        tensors += [
            Tensor(f"{name}.weight#row_scale", (ROWS,), "F32"),
            Tensor(f"{name}.weight#col_scale", (COLUMNS,), "F32"),
            Tensor(f"{name}.weight", (ROWS, COLUMNS), "BF16", ROWS, 3 * i, 3 * i + 1),
        ]
    meta = Metadata("bench", number_chains(tensors), FORMS)
    raw, others = 2 * experts, experts * levels
    number = np.arange(3 * experts)
    sizes = np.full(raw + others, length(FORMS[1], tensors[2], ROWS))
    sizes[:raw] = 4 * ROWS
    rows = Index(
        raw,
        np.concatenate([[0], np.cumsum(-(-sizes // 64) * 64)[:-1]]).astype("<u8"),
        sizes.astype("<u8"),
        sizes.astype("<u8"),
        np.frombuffer(np.random.default_rng(0).bytes(32 * (raw + others)), "V32"),
        np.concatenate([np.zeros(raw), np.linspace(2, 1, others)]).astype("<f4"),
        np.concatenate([number[number % 3 < 2], np.tile(number[number % 3 == 2], levels)]).astype("<u4"),
        np.concatenate([np.zeros(raw, int), np.repeat(np.arange(levels), experts)]).astype("<u2"),
        (np.arange(raw + others) >= raw).astype("<u2"),
    )
    sections = metadata.encode(meta), index.encode(rows)
    stored = [codec.compress(section) for section in sections]
    head = superblock.Superblock(len(stored[0]), len(sections[0]), len(stored[1]), len(sections[1]), 0, 0, 0, bytes(32))
    total = align(head.head_length) + int(rows.offset[-1]) + int(sizes[-1])
    head = replace(head, file_length=total, present_length=total)
    head = replace(head, root=superblock.compute_root(head.identity(), *stored))
    with open(path, "wb") as out:
        out.write(head.encode() + stored[0] + stored[1])
        out.truncate(total)
    return sum(map(len, sections))


def measured(command: list[str], times: int) -> dict[str, Any]:
    """Run it so many times; medians of what takes time or memory, and what is the same each time.

    Raises:
        SystemExit: a run fails.
    """
    runs = []
    for _ in range(times):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        runs.append(json.loads(done.stdout))
    out: dict[str, Any] = {}
    for key, value in runs[0].items():
        varies = key.endswith("_seconds") or key == "peak_bytes"
        middle = statistics.median(run[key] for run in runs)
        out[key] = float(f"{middle:.4g}") if key.endswith("_seconds") else int(middle) if varies else value
    return out


def main() -> None:
    """Make the file, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where the file is made; it takes little there")
    parser.add_argument("--experts", type=int, default=EXPERTS, help="matrices (default: %(default)s)")
    parser.add_argument("--levels", type=int, default=LEVELS, help="blocks of each (default: %(default)s)")
    parser.add_argument("--times", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--javascript", type=Path, help="spec/readers/js; needs node")
    args = parser.parse_args()
    path = args.folder / "large.bstk"
    decoded = make(path, args.experts, args.levels)
    readers = {"bsformat": [sys.executable, "-c", PROGRAM]}
    if args.javascript:
        readers["javascript"] = ["node", str(args.javascript / "bench.js")]
    rows = []
    with RangeServer(path) as server:
        for reader, command in readers.items():
            for place in (str(path), server.url):
                where = "http" if place == server.url else "file"
                rows.append({"reader": reader, "over": where} | measured([*command, place], args.times))
    with open(path, "rb") as file:
        lengths = superblock.decode(file.read(superblock.SIZE), str(path))
        file.seek(0)
        whole = file.read(lengths.head_length)
    result: dict[str, Any] = {
        "head_bytes": len(whole),
        "decoded_head_bytes": decoded,
        "file_bytes": lengths.file_length,
    }
    if args.javascript:
        result["node"] = subprocess.run(
            ["node", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
    path.unlink()
    print(printed(result | {"readings": rows} | machine(torch.device("cpu"))))


if __name__ == "__main__":
    main()
