"""What glibc's heap holds beyond what is in use: ``python -m bitstack.tools.bench.heap URI``.

Reads a prompt and writes a few tokens on the CPU, in processes of their own: with the heap as it is by default, and
with a steady one (`bitstack.loader.steady_heap`). Prints as JSON the most bytes that torch's allocator gave out at
once; by how much the process grew at the peak of its first answer, and had grown after it, what libraries take when
they first run included; and, of later answers, processor seconds of the prompt and of a token. Linux only.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

_CHILD = """
import json, re, sys, time
import torch
from torch.profiler import ProfilerActivity, profile
import bitstack
from bitstack.loader import steady_heap
from bitstack.tools.console import quiet_libraries

uri, steady, prompt, new = sys.argv[1], sys.argv[2] == "yes", int(sys.argv[3]), int(sys.argv[4])

def status(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\\s+(\\d+) kB", file.read())[1]) * 1024

quiet_libraries()
if steady and not steady_heap():
    raise SystemExit("the C library cannot be told")
model = bitstack.load(uri, "60%", "cpu")
ids = torch.arange(5, 5 + prompt).view(1, -1)

def write(tokens):
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    started = time.process_time()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return time.process_time() - started

before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
write(new)
peak, end = status("VmHWM"), status("VmRSS")
one, more = write(1), write(new)
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
    write(new)
held = most = 0
for _, size in sorted(
    (e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"
):
    held += size
    most = max(most, held)
print(json.dumps({
    "steady": steady, "prompt": prompt, "in_use": most, "grown_at_peak": peak - before, "grown_at_end": end - before,
    "prompt_seconds": round(one, 2), "token_seconds": round((more - one) / (new - 1), 4),
}))
"""


def measure(uri: str, prompt: int, new: int, *, steady: bool) -> dict[str, Any]:
    """One process."""
    command = [sys.executable, "-P", "-c", _CHILD, uri, "yes" if steady else "no", str(prompt), str(new)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a prompt of {prompt} tokens failed: {done.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--prompts", default="64,512,1536", help="tokens, separated by commas")
    parser.add_argument("--new-tokens", type=int, default=24)
    args = parser.parse_args()
    lengths = [int(text) for text in args.prompts.split(",")]
    rows = [measure(args.uri, n, args.new_tokens, steady=steady) for n in lengths for steady in (False, True)]
    import torch

    from bitstack.tools.devices import hardware, versions

    machine = hardware(torch.device("cpu"))
    print(json.dumps({"rows": rows, "hardware": machine, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
