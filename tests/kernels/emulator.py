"""Runs a kernel of CUDA C++ on the CPU, for tests where there is no GPU: what a C++ compiler makes of its source.

Functions of the source that are assembly have counterparts in `emulator.h`, which take their place; everything else is
compiled as it stands. Barriers, shared memory and what the threads of a warp do together are real: wrong indices show.
"""

import ctypes
import re
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bitstack.kernels import cuda_driver, hopper_reach, hopper_table, table
from bitstack.kernels.cuda_driver import Kernel

HEADERS = [Path(__file__).with_name(name) for name in ("emulator.h", "emulator_bits.h")]
RUN = Path(__file__).with_name("emulator_run.h")
_FUNCTION = re.compile(r"^__device__ inline \w+ (\w+)\([^{\n]*\{", re.M)


@cache
def compiler() -> str | None:
    """A compiler of C++ with half precision and threads that take turns, if there is one: g++ from version 12 on."""
    found = shutil.which("g++")
    if found is None:
        return None
    text = "#include <ucontext.h>\n_Float16 half(float f) { return (_Float16)f; }\n"
    command = [found, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    return found if subprocess.run(command, input=text, text=True, capture_output=True).returncode == 0 else None


def needed() -> None:
    """Skip the test where kernels cannot be run without a GPU."""
    if compiler() is None:
        pytest.skip("no g++ of version 12 or newer, which would run the kernels without a GPU")


def make_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tables on a CPU have all that kernels for compute capability 9.0 read, for three multiprocessors."""
    monkeypatch.setattr(table, "has_bit_products", lambda _: True)
    monkeypatch.setattr(hopper_table, "multiprocessors", lambda _: 3)
    monkeypatch.setattr(hopper_reach, "kernel_for", lambda _: _reach())
    monkeypatch.setattr(cuda_driver, "describe_bytes", lambda *matrix: struct.pack("<QQQ", *matrix).ljust(128, b"\0"))


def compile_kernel(source: str, kernel: str, arguments: str, folder: Path) -> Any:
    """A function of a pointer to the arguments, the threads of a program and the three sizes of a grid.

    Args:
        source: as NVRTC gets it, definitions first. kernel, arguments: the names of the kernel and of its structure.
    """
    definitions, rest = re.fullmatch(r"((?:#define [^\n]*\n)*)(.*)", source, re.S).groups()
    header = "\n".join(path.read_text("utf-8") for path in HEADERS)
    rest = _without(
        set(re.findall(r"^static [\w<>]+ (\w+)\(", header, re.M)), re.sub(r"#pragma unroll[^\n]*", "", rest)
    )
    rest = re.sub(r"extern __shared__ [^;]*?(\w+) (\w+)\[\];", r"\1* const \2 = (\1*)anchor_;", rest)
    if re.search(r"\basm\b", rest):
        raise ValueError("assembly in the source without a counterpart in emulator.h")
    # What the headers define is not defined again; what they use is defined before them.
    lines = [line for line in definitions.splitlines() if not re.search(rf"^{line.split('(')[0]}\b", header, re.M)]
    before = [line for line in lines if line.split()[1] == "BFLOAT"]
    after = [line for line in lines if line not in before]
    entry = (
        f'extern "C" bool run(const {arguments}* arguments, int threads, int x, int y, int z) {{\n'
        f"    return run_({kernel}, *arguments, threads, Place{{x, y, z}});\n}}\n"
    )
    text, library = folder / f"{kernel}.cpp", folder / f"{kernel}.so"
    text.write_text("\n".join([*before, header, *after, rest, RUN.read_text("utf-8"), entry]), "utf-8")
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-w"]
    made = subprocess.run(
        [str(compiler()), *flags, "-o", str(library), str(text)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise ValueError(f"{text}: {made.stderr[:2000]}")
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_bool
    return run


@cache
def _reach() -> "Emulated":
    folder = Path(tempfile.mkdtemp(prefix="reach-"))
    try:
        return Emulated(compile_kernel(hopper_reach.source(), "reach", "ReachArgs", folder))
    finally:
        shutil.rmtree(folder)


class Emulated(Kernel):
    """A kernel that runs on the CPU."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def launch(
        self, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure, shared_bytes: int | None = None
    ) -> None:
        """Run it, and return when it has ended."""
        if not self._run(ctypes.byref(arguments), threads, *grid):
            raise RuntimeError("the kernel waits for what never comes")


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
