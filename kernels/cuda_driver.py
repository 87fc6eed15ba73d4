"""CUDA C++ where a kernel needs what Triton does not offer: compiled by NVRTC, which comes with torch, and launched by
the driver. Both are called as they are; nothing is loaded until it is asked for.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

_EARLY: Final = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: a kernel may begin while the one before it ends."""
_DYNAMIC_SHARED_BYTES: Final = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_DIGEST_BYTES: Final = 32
_SWIZZLE_128: Final = 3
_PROMOTE_256: Final = 3


class DriverError(RuntimeError):
    """A call of the driver or of the compiler failed."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Launch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@cache
def driver() -> Any:
    """The driver of CUDA."""
    return ctypes.CDLL("libcuda.so.1")


def check(result: int, what: str) -> None:
    """Raise DriverError, saying what was tried, where a call of the driver has failed."""
    if result:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(result, ctypes.byref(text))
        raise DriverError(f"{what}: {(text.value or b'unknown error').decode()} ({result})")


@cache
def compiler() -> Any:
    """NVRTC of the CUDA that torch is built for, or None where there is none."""
    major = (torch.version.cuda or "").split(".")[0]
    if not major:
        return None
    name = f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    places = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [str(path) for place in places for path in sorted(place.glob(f"*/lib/{name}"))]
    for path in (*found, name):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    return None


def _compiled(source: str, architecture: str) -> bytes:
    """The machine code of a source; raises DriverError with the compiler's words where it cannot be compiled."""
    library = compiler()
    if library is None:
        raise DriverError("NVRTC, the compiler that comes with torch for CUDA, was not found")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"-default-device"]
    result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if result:
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        said = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, said)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        raise DriverError(f"NVRTC: {said.value.decode(errors='replace').strip()[:2000]}")
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, code)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


def _place(source: str, architecture: str) -> Path:
    """Where the machine code of a source is kept, in the user's cache folder."""
    version = (ctypes.c_int(), ctypes.c_int())
    if library := compiler():
        library.nvrtcVersion(*(ctypes.byref(part) for part in version))
    key = hashlib.sha256(f"{architecture} {[part.value for part in version]} {source}".encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bstk" / "kernels"
    return folder / f"{key}.cubin"


def _read(path: Path) -> bytes | None:
    """The machine code that was kept; None where it is not whole, since the driver would read past its end."""
    with contextlib.suppress(OSError):
        kept = path.read_bytes()
        code = kept[_DIGEST_BYTES:]
        if hashlib.sha256(code).digest() == kept[:_DIGEST_BYTES]:
            return code
    return None


def _keep(path: Path, code: bytes) -> None:
    """Keep machine code, behind its digest; a folder that cannot be written costs a second at the next start."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent)
        try:
            with open(number, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


class Module:
    """Compiled kernels, loaded on the current device.

    Args:
        source: CUDA C++.
        architecture: as NVRTC names it, `sm_90a`.

    Raises:
        DriverError: it cannot be compiled or loaded.
    """

    def __init__(self, source: str, architecture: str) -> None:
        self._module = ctypes.c_void_p()
        path = _place(source, architecture)
        kept = _read(path)
        if kept is not None and not driver().cuModuleLoadData(ctypes.byref(self._module), kept):
            self._code = kept
            return
        self._code = _compiled(source, architecture)
        _keep(path, self._code)
        check(driver().cuModuleLoadData(ctypes.byref(self._module), self._code), "loading a kernel")

    def kernel(self, name: str, shared_bytes: int = 0) -> "Kernel":
        """A kernel by its name, with the bytes of shared memory that each launch gives it."""
        function = ctypes.c_void_p()
        check(driver().cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()), f"finding {name}")
        if shared_bytes:
            result = driver().cuFuncSetAttribute(function, _DYNAMIC_SHARED_BYTES, shared_bytes)
            check(result, f"giving {name} {shared_bytes} bytes of shared memory")
        return Kernel(self, function, name, shared_bytes)


class Kernel:
    """A kernel of a module."""

    def __init__(self, module: Module, function: ctypes.c_void_p, name: str, shared_bytes: int) -> None:
        self._module, self._function, self._name, self._shared = module, function, name, shared_bytes

    def launch(
        self, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure, shared_bytes: int | None = None
    ) -> None:
        """Launch on torch's current stream, with one structure as the argument.

        It may begin before what was launched before it has ended: the kernel waits by itself, `griddepcontrol.wait`.

        Args:
            grid: programs, along three axes. threads: of a program. arguments: the structure.
            shared_bytes: of shared memory, at most what the kernel was got with; by default as many.
        """
        attribute = _Attribute(id=_EARLY, value=1)
        cuda: Any = torch.cuda
        stream = cuda.current_stream().cuda_stream
        shared = self._shared if shared_bytes is None else shared_bytes
        config = _Launch(*grid, threads, 1, 1, shared, stream, ctypes.pointer(attribute), 1)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        result = driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None)
        check(result, f"launching {self._name}")


def describe_bytes(address: int, row_bytes: int, rows: int) -> bytes:
    """Describe a matrix of bytes to the copy engine: tiles of 64 rows by 128 bytes, swizzled; zeros past its ends.

    Args:
        address: of the first byte, a multiple of 16.
        row_bytes: of a row, a multiple of 16.
        rows: of the matrix.
    """
    space = (ctypes.c_char * 192)()
    aligned = (ctypes.addressof(space) + 63) // 64 * 64
    sizes = (ctypes.c_uint64 * 2)(row_bytes, rows)
    strides = (ctypes.c_uint64 * 1)(row_bytes)
    box, steps = (ctypes.c_uint32 * 2)(128, 64), (ctypes.c_uint32 * 2)(1, 1)
    layout = (sizes, strides, box, steps)
    result = driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned), 0, 2, ctypes.c_void_p(address), *layout, 0, _SWIZZLE_128, _PROMOTE_256, 0
    )
    check(result, f"describing {rows} rows of {row_bytes} bytes at {address:#x}")
    return ctypes.string_at(aligned, 128)
