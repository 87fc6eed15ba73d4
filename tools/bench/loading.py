"""What a load costs: ``python -m bitstack.tools.bench.loading URI --budgets 60MiB,80MiB,120MiB``.

Each budget is loaded in a process of its own, on the CPU in float32. Prints as JSON the requests and bytes read, the
resident bytes, and the peak of the process's memory above two baselines: with only torch imported, and with the
architecture's own module of transformers imported too, which alone takes more than many a small model.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

_CHILD = """
import json, re, sys
import torch

def peak(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\\s+(\\d+) kB", file.read())[1]) * 1024

with_torch = peak("VmRSS")
import bitstack, bsformat
from bitstack.tools.console import quiet_libraries
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

quiet_libraries()
bitstack.load
with bsformat.open(sys.argv[1], cache=False) as container:
    kind = json.loads(container.attachment("config.json"))["model_type"]
AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[kind]]
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
with_architecture = peak("VmRSS")
model = bitstack.load(sys.argv[1], int(sys.argv[2]), "cpu", cache=False)
after, elastic = peak("VmHWM"), model.bitstack
print(json.dumps({
    "budget": int(sys.argv[2]),
    "resident_bytes": elastic.resident_bytes,
    "next_block_would_make": elastic.plan.next_bytes and elastic.plan.next_bytes + elastic.widening,
    "head_bytes": elastic.container.superblock.head_length,
    "prefix_bytes": elastic.plan.length,
    "bytes_read": elastic.container.source.bytes_read,
    "requests": elastic.container.source.requests,
    "memory_with_torch": with_torch,
    "memory_with_architecture": with_architecture,
    "peak": after,
    "peak_above_torch_and_resident": after - with_torch - elastic.resident_bytes,
    "peak_above_architecture_and_resident": after - with_architecture - elastic.resident_bytes,
}))
"""


def measure(uri: str, budget: int) -> dict[str, Any]:
    """One load in a new process."""
    done = subprocess.run([sys.executable, "-P", "-c", _CHILD, uri, str(budget)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"loading {uri} at {budget} bytes failed: {done.stderr.strip().splitlines()[-1]}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--budgets", required=True, help="sizes separated by commas")
    args = parser.parse_args()
    from bsformat import parse_size

    rows = [measure(args.uri, parse_size(budget)) for budget in args.budgets.split(",")]
    import torch

    from bitstack.tools.devices import hardware, versions

    machine = hardware(torch.device("cpu"))
    print(json.dumps({"rows": rows, "hardware": machine, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
