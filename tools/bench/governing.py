"""A governed model under memory pressure: ``python -m bitstack.tools.bench.governing URI``.

In a control group of its own with a limit of memory, a process loads the model and writes text, again and again, while
another one takes memory step by step, holds it, and gives it back. Once with a governor and once without: then the
kernel is expected to kill one of the two. Prints as JSON what each run held and did: how far it shrank and grew, how
many tokens it wrote, whether anybody was killed. Needs the right to make control groups (root, as a rule).
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from .pressure import Hog, LimitedGroup, NoGroupError, limited_group

#: Writes until its stdin ends; a line for each answer. The governor's log goes to stderr.
_WORKER = """
import json, logging, sys, threading, time
from contextlib import nullcontext
import torch
import bitstack
from bitstack.loader import JsonLines
from bitstack.tools.console import quiet_libraries

uri, governed, tokens, context, interval = sys.argv[1], sys.argv[2] == "yes", *map(float, sys.argv[3:])
quiet_libraries()
handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(JsonLines())
logger = logging.getLogger("bitstack.governor")
logger.addHandler(handler)
logger.setLevel(logging.DEBUG)
model = bitstack.load(uri, "100%", "cpu", context=int(context))
ids = torch.arange(5, 37).view(1, -1)
options = {"max_new_tokens": int(tokens), "min_new_tokens": int(tokens), "do_sample": False, "pad_token_id": 0}
model.generate(ids, attention_mask=torch.ones_like(ids), **options)
print(json.dumps({"resident": model.bitstack.resident_bytes}), flush=True)
over = threading.Event()
sys.stdin.readline()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
with bitstack.govern(model, interval=interval, dwell=1.0) if governed else nullcontext():
    while not over.is_set():
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        print(json.dumps({"time": time.monotonic(), "resident": model.bitstack.resident_bytes}), flush=True)
"""


def measure(args: argparse.Namespace, *, governed: bool) -> dict[str, Any]:
    """One run."""
    with limited_group(8 << 30) as group:
        options = [args.tokens, args.context, args.interval]
        command = [sys.executable, "-P", "-c", _WORKER, args.uri, "yes" if governed else "no", *map(str, options)]
        worker = group.start(command, stdin=subprocess.PIPE)
        if worker.stdin is None or worker.stdout is None:
            raise RuntimeError("the process has no pipes")
        try:
            line = worker.stdout.readline()
            if not line:
                raise SystemExit(f"loading failed: {worker.communicate()[1].strip().splitlines()[-1]}")
            before = group.used
            group.limit(before + args.headroom)
            worker.stdin.write("\n")
            worker.stdin.flush()
            alive = _pressed(group, args)
            out, log = worker.communicate()
        finally:
            worker.kill()
            worker.wait()
        answers = [json.loads(text) for text in out.splitlines()]
        events = [json.loads(text) for text in log.splitlines() if text.startswith("{")]
        return _summary(governed, json.loads(line)["resident"], before, alive, group, answers, events)


def _pressed(group: LimitedGroup, args: argparse.Namespace) -> bool:
    """Take memory, hold it, and give it back; whether the one that took it lived through it."""
    mebibytes = args.taken >> 20
    with Hog(group) as hog:
        for taken in range(0, mebibytes + 1, args.stride >> 20):
            if not hog.hold(taken):
                return False
            time.sleep(args.interval * 2)
        time.sleep(args.seconds)
        alive = hog.hold(0)
        time.sleep(args.seconds)
    return alive


def _summary(
    governed: bool,
    loaded: int,
    before: int,
    alive: bool,
    group: LimitedGroup,
    answers: list[dict[str, Any]],
    events: list[dict[str, Any]],
) -> dict[str, Any]:
    made = [event for event in events if event["event"] == "resized"]
    free = [event["free"] for event in events if event["event"] == "decision"]
    resident = [loaded, *(event["resident"] for event in made)]
    return {
        "governed": governed,
        "killed": group.killed,
        "other_lived": alive,
        "answers": len(answers),
        "used_before": before,
        "resident_loaded": loaded,
        "resident_least": min(resident),
        "resident_last": resident[-1],
        "shrinks": sum(event["action"] == "shrink" for event in made),
        "growths": sum(event["action"] == "grow" for event in made),
        "failures": sum(event["event"] == "failed" for event in events),
        "free_least": min(free, default=None),
        "seconds_of_resizes": [round(event["seconds"], 3) for event in made],
    }


def main() -> None:
    """Measure and print."""
    from bsformat import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--headroom", type=parse_size, default="200MiB", help="the limit, above what is used at first")
    parser.add_argument("--taken", type=parse_size, default="230MiB", help="what the other process takes in the end")
    parser.add_argument("--stride", type=parse_size, default="10MiB", help="what it takes at a time")
    parser.add_argument("--seconds", type=float, default=15, help="for how long it holds that, and is watched after")
    parser.add_argument("--interval", type=float, default=0.25, help="seconds between two looks of the governor")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--context", type=int, default=64, help="that growing leaves room for")
    args = parser.parse_args()
    try:
        rows = [measure(args, governed=governed) for governed in (True, False)]
    except NoGroupError as error:
        raise SystemExit(f"no control group can be made: {error}") from None
    import torch

    from bitstack.tools.devices import hardware, versions

    settings = {name: value for name, value in vars(args).items() if name != "uri"}
    machine = hardware(torch.device("cpu"))
    print(json.dumps({"settings": settings, "rows": rows, "hardware": machine, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
