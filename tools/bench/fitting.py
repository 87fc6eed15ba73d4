"""Whether what ``--budget auto`` chooses fits: ``python -m bitstack.tools.bench.fitting URI``.

Runs ``bstk generate`` in control groups with less and less memory, once with a short and once with a long prompt. Each
run ends with an answer, or with the one line that says that there is too little; a process that the kernel had to kill
means that ``auto`` counted wrong. Prints as JSON for each run what was decided, what was held at the peak, and how it
ended. Needs the right to make control groups (root, as a rule).
"""

import argparse
import json
import os
import sys
from typing import Any

from .pressure import LimitedGroup, NoGroupError, limited_group

_PROMPT = "tell me a story of the sea "


def measure(uri: str, limit: int, words: int, new_tokens: int) -> dict[str, Any]:
    """One run."""
    prompt = (_PROMPT * words)[: words * 6]
    command = [sys.executable, "-P", "-m", "bitstack.tools.cli", "generate", uri, "--json", "--raw"]
    with limited_group(limit) as group:
        process = group.start([*command, "--prompt", prompt, "--max-new-tokens", str(new_tokens)])
        out, err = process.communicate()
        killed, peak = group.killed, _peak(group)
    result = json.loads(out) if process.returncode == 0 else {}
    row = {"limit": limit, "killed": killed, "peak": peak, "resident_bytes": result.get("resident_bytes")}
    if result:
        auto = result["auto"]
        row |= {name: auto[name] for name in ("context", "free_bytes", "cache_bytes", "workspace_bytes", "spare_bytes")}
        return row | {"budget_bytes": auto["budget_bytes"], "ended": "an answer"}
    return row | {"ended": "too little, said so" if "budget-too-small" in err else f"failed: {err.strip()[-200:]}"}


def _peak(group: LimitedGroup) -> int:
    name = "memory.max_usage_in_bytes" if group.version == 1 else "memory.peak"
    with open(os.path.join(group.folder, name), encoding="ascii") as file:
        return int(file.read())


def main() -> None:
    """Measure and print."""
    from bsformat import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("--limits", default="1000MiB,800MiB,700MiB,600MiB,500MiB,400MiB")
    parser.add_argument("--words", default="10,1000", help="of the prompts")
    parser.add_argument("--new-tokens", type=int, default=16)
    args = parser.parse_args()
    try:
        rows = [
            {"words": int(words), **measure(args.uri, parse_size(limit), int(words), args.new_tokens)}
            for words in args.words.split(",")
            for limit in args.limits.split(",")
        ]
    except NoGroupError as error:
        raise SystemExit(f"no control group can be made: {error}") from None
    import torch

    from bitstack.tools.devices import hardware, versions

    machine = hardware(torch.device("cpu"))
    print(json.dumps({"rows": rows, "hardware": machine, "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
