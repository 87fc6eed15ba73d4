"""Runs a kernel of CUDA C++ on the CPU, for tests where there is no GPU: what a C++ compiler makes of its source.

Functions of the source that are assembly have counterparts in `emulator.h`, which take their place; everything else is
compiled as it stands. Barriers, shared memory and what the threads of a warp do together are real: wrong indices show.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

HEADER = Path(__file__).with_suffix(".h")
_FUNCTION = re.compile(r"^__device__ inline \w+ (\w+)\([^{\n]*\{", re.M)


def compiler() -> str | None:
    """A compiler of C++ with half precision, if there is one."""
    return shutil.which("g++")


def compile_kernel(source: str, kernel: str, arguments: str, threads: int, folder: Path) -> Any:
    """A function of a pointer to the arguments and the three sizes of a grid.

    Args:
        source: as NVRTC gets it, definitions first. kernel, arguments: the names of the kernel and of its structure.
        threads: of a program.
    """
    definitions, rest = re.fullmatch(r"((?:#define [^\n]*\n)*)(.*)", source, re.S).groups()
    header = HEADER.read_text("utf-8")
    replaced = set(re.findall(r"^static [\w<>]+ (\w+)\(", header, re.M))
    rest = _without(replaced, re.sub(r"#pragma unroll[^\n]*", "", rest))
    if re.search(r"\basm\b", rest):
        raise ValueError(f"assembly in the source without a counterpart in {HEADER.name}")
    narrow = [line for line in definitions.splitlines() if line.split()[1] == "BFLOAT"]
    others = [line for line in definitions.splitlines() if line not in narrow]
    entry = (
        f'extern "C" void run(const {arguments}* arguments, int x, int y, int z) {{\n'
        f"    run_({kernel}, *arguments, {threads}, Place{{x, y, z}});\n}}\n"
    )
    text, library = folder / f"{kernel}.cpp", folder / f"{kernel}.so"
    text.write_text("\n".join([*narrow, header, *others, rest, entry]), "utf-8")
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-pthread", "-w"]
    made = subprocess.run(
        [str(compiler()), *flags, "-o", str(library), str(text)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise ValueError(f"{text}: {made.stderr[:2000]}")
    return ctypes.CDLL(str(library)).run


def _without(names: set[str], source: str) -> str:
    """The source without the functions of these names."""
    kept, at = [], 0
    for match in _FUNCTION.finditer(source):
        if match[1] in names:
            end, depth = match.end(), 1
            while depth:
                depth += {"{": 1, "}": -1}.get(source[end], 0)
                end += 1
            kept.append(source[at : match.start()])
            at = end
    return "".join([*kept, source[at:]])
