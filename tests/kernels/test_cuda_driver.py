"""What becomes of compiled kernels, where compiler and driver are stand-ins."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitstack.kernels import cuda_driver
from bitstack.kernels.cuda_driver import DriverError, Module

CODE = b"machine code" * 100


class Driver:
    """Loads what the compiler made, and nothing else."""

    def __init__(self):
        self.loaded, self.refused, self.refuses = 0, 0, 0

    def cuModuleLoadData(self, _, code):
        if self.refuses or code != CODE:
            self.refused += 1
            self.refuses -= 1
            return 200
        self.loaded += 1
        return 0

    def cuGetErrorString(self, *_):
        return 0


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The driver, how often something was compiled, and where it is kept."""
    driver, compiled = Driver(), []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda_driver, "driver", lambda: driver)
    monkeypatch.setattr(cuda_driver, "compiler", lambda: None)
    monkeypatch.setattr(cuda_driver, "_compiled", lambda *source: compiled.append(source) or CODE)
    return SimpleNamespace(driver=driver, compiled=compiled, files=lambda: [*filter(Path.is_file, tmp_path.rglob("*"))])


def test_what_was_compiled_is_kept(gpu):
    for _ in range(3):
        Module("source", "sm_90a")
    Module("another source", "sm_90a")
    assert len(gpu.compiled) == 2
    assert gpu.driver.loaded == 4
    assert len(gpu.files()) == 2


@pytest.mark.parametrize("damage", ["empty", "short", "long", "bit"])
def test_what_was_damaged_is_compiled_again(gpu, damage):
    Module("source", "sm_90a")
    (path,) = gpu.files()
    kept = path.read_bytes()
    turned = kept[:100] + bytes([kept[100] ^ 1]) + kept[101:]
    path.write_bytes({"empty": b"", "short": kept[:-1], "long": kept + b"\0", "bit": turned}[damage])
    for _ in range(2):
        Module("source", "sm_90a")
    assert len(gpu.compiled) == 2
    assert gpu.driver.refused == 0
    assert path.read_bytes() == kept
    assert gpu.files() == [path]


def test_what_the_driver_refuses_is_compiled_again(gpu):
    Module("source", "sm_90a")
    gpu.driver.refuses = 1
    Module("source", "sm_90a")
    assert (len(gpu.compiled), gpu.driver.loaded) == (2, 2)
    gpu.driver.refuses = 2
    with pytest.raises(DriverError, match="loading a kernel"):
        Module("source", "sm_90a")


def test_nothing_stays_of_what_could_not_be_written(gpu, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        Module("source", "sm_90a")
    assert gpu.driver.loaded == 1
    assert not gpu.files()
    Module("source", "sm_90a")
    assert len(gpu.files()) == 1
