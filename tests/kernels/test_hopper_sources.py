"""Every CUDA source compiles, which takes NVRTC and no GPU."""

import ctypes
import importlib.util
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from bitstack.kernels import cuda_driver, hopper, hopper_matrix, hopper_reach

BITS = [(14, True), (16, False)]
TYPES = [torch.bfloat16, torch.float16]
SOURCES = {
    "reach": hopper_reach.source(),
    **{f"rebuild, {dtype}": hopper_matrix.source("rebuild", dtype) for dtype in TYPES},
    **{
        f"several, {tokens} tokens, {dtype}": hopper_matrix.source("several", dtype, TOKENS=tokens)
        for tokens in (8, 16)
        for dtype in TYPES
    },
    **{
        f"few, {ranks} columns, {tokens} tokens, {bits} bits": hopper.Variant(bits, ranks, tokens, bfloat).source()
        for ranks, tokens in ((8, 1), (8, 2), (8, 4), (16, 1), (16, 2))
        for bits, bfloat in BITS
    },
}


@cache
def _nvrtc() -> Any:
    """That of torch, or any: it compiles for GPUs that are not there."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    for path in [path for place in places for path in sorted(place.glob("*/lib/libnvrtc.so.*"))]:
        return ctypes.CDLL(str(path))
    return cuda_driver.compiler()


@pytest.mark.parametrize("name", SOURCES)
def test_compiles(name, monkeypatch):
    if _nvrtc() is None:
        pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc")
    monkeypatch.setattr(cuda_driver, "compiler", _nvrtc)
    assert cuda_driver._compiled(SOURCES[name], "sm_90a")


def test_nothing_is_left_out():
    texts = [path.read_text("utf-8") for path in files("bitstack.kernels").iterdir() if path.name.endswith(".cu")]
    assert texts
    assert all(any(text in source for source in SOURCES.values()) for text in texts)
