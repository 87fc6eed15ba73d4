"""How fast blocks come from a web server: ``python -m bitstack.tools.bench.streaming FILE.bstk --keep OUT.json``.

An nginx serves the file on loopback. Each way to read it runs in a process of its own, all of them in turn, several
times over, so that what else the machine does hits all of them; kept are the best and the median of each. Beside ours,
which compares every block with its digest: curl, which throws bytes away; fsspec and obstore, which check nothing;
safetensors, Run:ai's streamer and tensorizer, where they are installed, on a dense file of as many bytes. Then the same
from the local disk, its cache dropped where that is allowed. `random_file` makes a file of any size.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .report import machine, printed
from .web_server import serving

MIB = 1 << 20


def run_case(name: str, *arguments: str) -> dict[str, Any]:
    """One case of `streaming_cases` in a new process; what failed has an ``error``."""
    command = [sys.executable, "-P", "-m", "bitstack.tools.bench.streaming_cases", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["nothing said"])[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def run_curl(url: str, size: int, connections: int) -> dict[str, Any]:
    """curl, with several connections: each takes one part of the file and throws it away."""
    share = -(-size // connections)
    arguments: list[str] = []
    for i in range(connections):
        part = f"{i * share}-{min((i + 1) * share, size) - 1}"
        arguments += [*(["--next"] if i else []), "-s", "-o", os.devnull, "-r", part, url]
    started = time.perf_counter()
    subprocess.run(["curl", "--no-progress-meter", "-Z", "--parallel-immediate", *arguments], check=True)
    return {"bytes": size, "seconds": round(time.perf_counter() - started, 4)}


def drop_cache(path: Path) -> bool:
    """Make the system forget what it holds of a file; whether that could be asked for."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except (OSError, AttributeError):
        return False
    finally:
        os.close(fd)
    return True


def write_dense(folder: Path, size: int) -> dict[str, Path]:
    """Dense tensors of ``size`` bytes in all, as safetensors and, where it is installed, for tensorizer."""
    from safetensors.torch import save_file

    side = 4096
    count = max(1, size // (side * side * 2))
    made = {f"{i}.weight": torch.randint(-999, 999, (side, side), dtype=torch.int16) for i in range(count)}
    out = {"safetensors": folder / "dense.safetensors"}
    save_file(made, out["safetensors"])
    if find_spec("tensorizer"):
        from tensorizer import TensorSerializer

        out["tensorizer"] = folder / "dense.tensors"
        writer = TensorSerializer(str(out["tensorizer"]))
        writer.write_state_dict(made)
        writer.close()
    return out


Way = tuple[str, tuple[str, ...]]


def ways_over_http(url: str, dense: dict[str, str]) -> dict[str, Way]:
    """Names, and cases with their arguments."""
    ways: dict[str, Way] = {
        "ours": ("blocks", (url,)),
        "ours, into tensors": ("tensors", (url,)),
        "ours, 4 requests of 1 MiB": ("blocks", (url, "fsspec", "4", str(MIB))),
        "ours, 4 requests of 4 MiB": ("blocks", (url, "fsspec", "4", str(4 * MIB))),
    }
    for mib, batch in ((4, 8), (16, 4), (16, 16)):
        ways[f"fsspec cat_ranges, {batch} of {mib} MiB"] = ("cat_ranges", (url, str(mib * MIB), str(batch)))
    if find_spec("obstore"):
        ways["ours, through obstore"] = ("blocks", (url, "obstore"))
        for mib, threads in ((4, 8), (16, 4)):
            ways[f"obstore, {threads} threads of {mib} MiB"] = ("obstore_ranges", (url, str(mib * MIB), str(threads)))
    if "tensorizer" in dense:
        for verify in ("verify", "trust"):
            ways[f"tensorizer, {verify}"] = ("tensorizer_load", (dense["tensorizer"], verify))
    return ways


def ways_from_disk(path: Path, dense: dict[str, Path]) -> dict[str, Way]:
    """The same for local files."""
    ways: dict[str, Way] = {
        "plain read": ("raw_read", (str(path), str(8 * MIB))),
        "ours": ("blocks", (str(path),)),
        "ours, into tensors": ("tensors", (str(path),)),
        "safetensors": ("safetensors_load", (str(dense["safetensors"]),)),
    }
    if find_spec("runai_model_streamer"):
        ways["Run:ai streamer, 4 threads"] = ("runai_streamer", (str(dense["safetensors"]), "4"))
        ways["Run:ai streamer, 16 threads"] = ("runai_streamer", (str(dense["safetensors"]), "16"))
    if "tensorizer" in dense:
        ways["tensorizer, verify"] = ("tensorizer_load", (str(dense["tensorizer"]), "verify"))
    return ways


def summary(name: str, runs: list[dict[str, Any]], yardstick: float | None = None) -> dict[str, Any]:
    """Best and median of some runs of one way."""
    good = [run for run in runs if "error" not in run]
    if not good:
        return {"way": name, "error": runs[-1]["error"]}
    best = min(good, key=lambda run: run["bytes"] / -run["seconds"])
    row = {
        "way": name,
        "bytes": best["bytes"],
        "best_gb_per_s": round(best["bytes"] / best["seconds"] / 1e9, 3),
        "median_gb_per_s": round(statistics.median(run["bytes"] / run["seconds"] / 1e9 for run in good), 3),
        "runs": len(good),
    }
    row |= {key: best[key] for key in ("user", "system", "peak") if key in best}
    if yardstick:
        row["of_yardstick"] = round(row["best_gb_per_s"] / yardstick, 3)
    return row


def wanted(ways: dict[str, Way], only: Sequence[str]) -> dict[str, Way]:
    """The ways whose names contain one of some words; all of them where there are no words."""
    return {name: way for name, way in ways.items() if not only or any(word in name for word in only)}


def note(runs: dict[str, list[dict[str, Any]]], name: str, run: dict[str, Any]) -> None:
    """Keep a run, and say what came of it."""
    runs.setdefault(name, []).append(run)
    said = run["error"] if "error" in run else f"{run['bytes'] / run['seconds'] / 1e9:.2f} GB/s"
    print(f"{name}: {said}", file=sys.stderr, flush=True)


def measure_http(
    path: Path, url: str, dense: dict[str, str], repeats: int, only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """All ways over http, in turn, or those with certain names; curl always."""
    size, ways = path.stat().st_size, wanted(ways_over_http(url, dense), only)
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for connections in (1, 4, 8):
            note(runs, f"curl, {connections} connections", run_curl(url, size, connections))
        for name, (case, arguments) in ways.items():
            note(runs, name, run_case(case, *arguments))
    curl = max(summary(name, rows)["best_gb_per_s"] for name, rows in runs.items() if name.startswith("curl"))
    return [summary(name, rows, curl) for name, rows in runs.items()]


def measure_disk(
    path: Path, dense: dict[str, Path], repeats: int, only: Sequence[str] = (), *, cold: bool
) -> list[dict[str, Any]]:
    """All ways from the disk, in turn, or those with certain names; a plain read always."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for name, (case, arguments) in wanted(
            ways_from_disk(path, dense), [*only, *(["plain read"] if only else [])]
        ).items():
            if cold and not drop_cache(Path(arguments[0])):
                return []
            note(runs, name, run_case(case, *arguments))
    raw = summary("plain read", runs["plain read"])["best_gb_per_s"]
    return [summary(name, rows, raw) for name, rows in runs.items()]


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.bstk")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", metavar="WORDS", help="only ways whose names contain one of these, between commas")
    parser.add_argument("--keep", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    size, only = args.file.stat().st_size, args.only.split(",") if args.only else []
    folder = args.file.resolve().parent / f"{args.file.name}.dense"
    folder.mkdir(exist_ok=True)
    try:
        dense = write_dense(folder, size)
        with serving(args.file.resolve().parent) as base:
            urls = {name: f"{base}/{folder.name}/{path.name}" for name, path in dense.items()}
            over_http = measure_http(args.file, f"{base}/{args.file.name}", urls, args.repeats, only)
        result = {
            "what": "GB/s of the file; of_yardstick: of the best of curl, or of a plain read",
            "bytes": size,
            "load_average": os.getloadavg(),
            "http": over_http,
            "disk_cached": measure_disk(args.file, dense, args.repeats, only, cold=False),
            "disk_cold": measure_disk(args.file, dense, args.repeats, only, cold=True),
        }
    finally:
        shutil.rmtree(folder)
    with suppress(OSError):
        result["curl"] = subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    result |= machine(torch.device("cpu"))
    print(printed(result))
    if args.keep:
        args.keep.write_text(printed(result) + "\n")


if __name__ == "__main__":
    main()
