"""One process of coverage-guided fuzzing: libFuzzer, by atheris, drives it; started by `bitstack.tools.fuzz`.

    python -c PROGRAM LIBFUZZER_ARGUMENTS CORPUS…

with `PROGRAM` of this module: bsformat has to be instrumented before anything imports it. The rest is in the
environment, in ``BSTK_FUZZ`` as JSON: see `Task`.
"""

import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from .examine import limit_memory
from .mutator import MAX_BYTES, mutate, mutate_bytes
from .session import Session

PROGRAM: Final = """
import atheris
with atheris.instrument_imports(include=["bsformat"], enable_loader_override=False):
    import bsformat
    import bsformat.rebuild
from bitstack.tools.fuzzing.worker import main
main(atheris)
"""
#: Address space that one process may take beyond what it has when it begins, in bytes.
MAX_MEMORY: Final = 2 << 30
#: What volumes after the first are called.
_VOLUME: Final = re.compile(r"\.\d{5}\.bstk$")


def read_seeds(folder: Path) -> list[bytes]:
    """The files below a folder, smallest first; none that is too large to be mutated, and no volume after the first."""
    found = (path.read_bytes() for path in sorted(folder.rglob("*.bstk")) if not _VOLUME.search(path.name))
    return sorted({data for data in found if len(data) <= MAX_BYTES}, key=lambda data: (len(data), data))


@dataclass(frozen=True)
class Task:
    """What one process is to do.

    Attributes:
        folder, name: see `Session`. donors: a folder of sound files. javascript: see `Session`; "" for none.
        runs, seconds: how long; 0 for no limit.
    """

    folder: str
    name: str
    donors: str
    javascript: str = ""
    runs: int = 0
    seconds: float = 0.0


def main(atheris: Any) -> None:
    """Fuzz until the task is done."""
    task = Task(**json.loads(os.environ["BSTK_FUZZ"]))
    session = Session(
        Path(task.folder),
        task.name,
        Path(task.javascript) if task.javascript else None,
        runs=task.runs or math.inf,
        seconds=task.seconds or math.inf,
    )
    donors = read_seeds(Path(task.donors))

    def custom(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)

        def bytes_of(some: bytes) -> bytes:
            # libFuzzer's own mutations know what bytes were compared with.
            if random.random() < 0.5 and some:
                return bytes(atheris.Mutate(some, len(some) + 64))
            return mutate_bytes(some, random)

        return mutate(data, random, donors, bytes_of)[:max_size]

    atheris.Setup(sys.argv, session.run, custom_mutator=custom)
    limit_memory(MAX_MEMORY)
    atheris.Fuzz()
