"""What importing costs, and that it loads no torch: ``python -m bitstack.tools.bench.imports``.

Each statement runs in fresh interpreters, after one that is not counted. Prints as JSON, for each: seconds beyond those
of an interpreter that does nothing, median and least; modules loaded beyond its own; and which of the heavy packages
are among them.
"""

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any, Final

from bitstack.tools.values import whole

#: What must not be loaded by anything that only looks around.
HEAVY: Final = ("torch", "transformers", "triton", "numba", "gradio")
_HELP = "from bitstack.tools.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
STATEMENTS: Final = {
    "nothing": "",
    "import bsformat": "import bsformat",
    "import bitstack": "import bitstack",
    "bstk --help": _HELP,
    "import torch": "import torch",
}
_TAIL = f"\nimport sys\nprint()\nprint(len(sys.modules), *(name for name in {HEAVY} if name in sys.modules))"


def measured(statement: str, repeats: int) -> dict[str, Any]:
    """Run a statement ``repeats`` times and once before, each in an interpreter of its own."""
    seconds, words = [], [""]
    for _ in range(repeats + 1):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-c", statement + _TAIL], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        words = done.stdout.splitlines()[-1].split()
    return {"seconds": seconds[1:], "modules": int(words[0]), "heavy": words[1:]}


def main(argv: list[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bitstack.tools.bench.imports", description=__doc__)
    parser.add_argument("--repeats", type=whole(1), default=9, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    found = {name: measured(statement, args.repeats) for name, statement in STATEMENTS.items()}
    idle = found.pop("nothing")
    rows = [
        {
            "what": name,
            "median_seconds": round(statistics.median(one["seconds"]) - statistics.median(idle["seconds"]), 3),
            "least_seconds": round(min(one["seconds"]) - min(idle["seconds"]), 3),
            "modules": one["modules"] - idle["modules"],
            "heavy": one["heavy"],
        }
        for name, one in found.items()
    ]
    import torch

    from bitstack.tools.devices import hardware, versions

    from .report import printed

    place = {"hardware": hardware(torch.device("cpu")), "versions": versions()}
    print(printed({"repeats": args.repeats, "rows": rows} | place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
