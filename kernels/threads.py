"""The threads that torch computes with, for code that is not torch's."""

import ctypes
import re
from functools import cache
from pathlib import Path

import torch


@cache
def openmp_parallel() -> int:
    """Return the address of GOMP_parallel in the OpenMP library that torch has loaded, 0 if there is none.

    The same library means the same threads: a second pool would compete with torch's for the processors.
    """
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return 0
    own = str(Path(torch.__file__).parent.parent)
    found = set(re.findall(r"(/\S*/lib(?:gomp|iomp5|omp)[^/\s]*)$", maps, re.MULTILINE))
    for path in sorted(found, key=lambda path: (not path.startswith(own), path)):
        try:
            return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0
