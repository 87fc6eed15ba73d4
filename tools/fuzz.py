"""Fuzzing of `bsformat`: ``python -m bitstack.tools.fuzz --minutes 60 --jobs 2``, in the root of the repository.

libFuzzer, by atheris (``pip install 'bitstack[fuzz]'``), looks for files that reach new code; its mutations are those
of `bitstack.tools.fuzzing.mutator`, which repair the digests of what they change. Every file is opened, planned,
verified, read and rebuilt; nothing but a `BstkError` may come of it, within a time and, for a sample, within a memory
that is a stated multiple of the file; and for a sample the JavaScript reader must accept and refuse the same. What is
found lies in ``--work``. The counts are printed as JSON. Exit code 1 where something was found.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .fuzzing.examine import BASE_BYTES, DEADLINE, TIMES
from .fuzzing.mutator import MAX_BYTES
from .fuzzing.worker import PROGRAM, Task

#: Wall seconds after which libFuzzer ends a process that is still at one file.
HANG = 60
#: MiB of a process, as libFuzzer measures it.
RSS_MIB = 2048
#: Executions of one process: then a fresh one goes on, since libFuzzer's memory grows.
PROCESS_RUNS = 400_000
#: Processes that may end before their time: each one is a finding.
MAX_ENDS = 20


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bitstack.tools.fuzz", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="how long")
    parser.add_argument("--runs", type=int, default=0, help="or how many executions, of each process")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: %(default)s)")
    parser.add_argument(
        "--vectors", type=Path, default=Path("spec/vectors"), help="where to begin (default: %(default)s)"
    )
    parser.add_argument(
        "--corpus", type=Path, default=Path("tests/fuzz/corpus"), help="what earlier runs kept (default: %(default)s)"
    )
    parser.add_argument("--javascript", type=Path, help="spec/readers/js: compare with that reader; needs node")
    parser.add_argument("--work", type=Path, help="where new files and findings go (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="write the counts here too")
    parser.add_argument(
        "--keep", action="store_true", help="add to --corpus the fewest files that reach what was reached"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 where nothing was found."""
    parser = options()
    args = parser.parse_args(argv)
    if not args.minutes and not args.runs:
        parser.error("say how long: --minutes N, or --runs N")
    if not any(args.vectors.glob("valid/*.bstk")):
        parser.error(f"{args.vectors} has no valid/*.bstk; run it in the root of the repository, or name --vectors")
    if args.javascript and not (args.javascript / "answers.js").is_file():
        parser.error(f"{args.javascript} has no answers.js; name the folder spec/readers/js")
    work = args.work or Path(tempfile.mkdtemp(prefix="bstk-fuzz-"))
    corpus = work / "corpus"
    for folder in (corpus, work / "seeds", work / "findings"):
        folder.mkdir(parents=True, exist_ok=True)
    for place in (args.vectors, args.corpus):
        for path in place.rglob("*.bstk"):
            if path.stat().st_size <= MAX_BYTES:
                shutil.copy(path, work / "seeds" / path.name)
    print(f"findings and new files: {work}", file=sys.stderr, flush=True)
    began = time.monotonic()
    ends = run(args, work)
    result = counted(work, ends) | {
        "seconds": round(time.monotonic() - began, 1),
        "jobs": args.jobs,
        "seed": args.seed,
        "limits": {
            "base_bytes": BASE_BYTES,
            "times_of_file_and_head": TIMES,
            "cpu_seconds": DEADLINE,
            "file_bytes": MAX_BYTES,
        },
    }
    if args.keep:
        result["kept"] = keep(work, args.corpus)
    import torch  # here, since the fuzzing itself does without

    from .bench.report import machine, printed

    text = printed(result | {"atheris": version()} | machine(torch.device("cpu")))
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 1 if result["findings"] else 0


def run(args: argparse.Namespace, work: Path) -> list[str]:
    """Run so many processes side by side, fresh ones for those that ended; gives what is wrong about how they ended."""
    stop = time.monotonic() + 60 * args.minutes if args.minutes else None
    ends: list[str] = []
    running: dict[int, subprocess.Popen[bytes]] = {}
    started = 0
    while running or started < args.jobs or _goes_on(stop, ends):
        while len(running) < args.jobs and (started < args.jobs or _goes_on(stop, ends)):
            seconds = max(1.0, stop - time.monotonic()) if stop else 0.0
            running[started] = start(args, work, started, seconds)
            started += 1
        time.sleep(0.1)
        for number, process in list(running.items()):
            if process.poll() is not None:
                del running[number]
                if process.returncode:
                    ends.append(f"process {number} ended with {process.returncode}: see log-{number}.txt")
    return ends


def _goes_on(stop: float | None, ends: list[str]) -> bool:
    return stop is not None and len(ends) < MAX_ENDS and time.monotonic() < stop - 2


def start(args: argparse.Namespace, work: Path, number: int, seconds: float) -> "subprocess.Popen[bytes]":
    """One process of fuzzing; its log is ``log-NUMBER.txt``."""
    task = Task(
        str(work / "findings"),
        str(number),
        str(args.vectors / "valid"),
        str(args.javascript or ""),
        args.runs or PROCESS_RUNS,
        seconds,
    )
    flags = [
        f"-seed={args.seed + number}",
        f"-max_len={MAX_BYTES}",
        f"-timeout={HANG}",
        memory_flag(),
        "-reload=30",
    ]
    flags += [f"-artifact_prefix={work / 'findings'}/", "-close_fd_mask=0"]
    command = [sys.executable, "-P", "-c", PROGRAM, *flags, str(work / "corpus"), str(work / "seeds")]
    environment = os.environ | {"BSTK_FUZZ": json.dumps(asdict(task)), "OMP_NUM_THREADS": "1"}
    with open(work / f"log-{number}.txt", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def memory_flag() -> str:
    """The most memory of a process. A program begins with the peak of the one that starts it as its own (Linux)."""
    return f"-rss_limit_mb={RSS_MIB + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}"


def counted(work: Path, ends: list[str]) -> dict[str, Any]:
    """The counts of all processes together."""
    sums: Counter[str] = Counter()
    maps: dict[str, Counter[str]] = {}
    worst: dict[str, float] = {}
    for path in sorted((work / "findings").glob("stats-*.json")):
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            if key.startswith("worst"):
                worst[key] = max(worst.get(key, 0), value)
            elif isinstance(value, dict):
                maps.setdefault(key, Counter()).update(value)
            else:
                sums[key] += value
    logs = "".join(path.read_text("utf-8", "replace") for path in sorted(work.glob("log-*.txt")))
    covered = re.findall(r"cov: (\d+) ft: (\d+)", logs)
    out: dict[str, Any] = {**sums, **worst}
    out["covered_edges"] = max((int(edges) for edges, _ in covered), default=0)
    out["covered_features"] = max((int(features) for _, features in covered), default=0)
    out |= {key: dict(value.most_common()) for key, value in maps.items()}
    out["findings"] = {**out.get("findings", {}), **dict.fromkeys(ends, 1)}
    return out


def keep(work: Path, corpus: Path) -> int:
    """Add to the corpus the fewest files that reach what the seeds do not; gives how many it has then."""
    merged, launcher = work / "merged", work / "launcher"
    shutil.copytree(work / "seeds", merged, dirs_exist_ok=True)
    # Merging starts the program again by its name.
    launcher.write_text(f"#!{sys.executable} -P\n{PROGRAM}", encoding="utf-8")
    launcher.chmod(0o755)
    task = Task(str(work / "findings"), "merge", str(work / "seeds"))
    command = [str(launcher), "-merge=1", f"-max_len={MAX_BYTES}", memory_flag(), str(merged), str(work / "corpus")]
    environment = os.environ | {"BSTK_FUZZ": json.dumps(asdict(task)), "OMP_NUM_THREADS": "1"}
    with open(work / "log-merge.txt", "wb") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    seeds = {path.read_bytes() for path in (work / "seeds").iterdir()}
    corpus.mkdir(parents=True, exist_ok=True)
    for path in merged.iterdir():
        if (data := path.read_bytes()) not in seeds:
            (corpus / f"{path.name[:16]}.bstk").write_bytes(data)
    return len(list(corpus.glob("*.bstk")))


def version() -> str:
    """The version of atheris."""
    import importlib.metadata

    return importlib.metadata.version("atheris")


if __name__ == "__main__":
    sys.exit(main())
