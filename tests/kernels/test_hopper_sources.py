"""Every CUDA source compiles, which takes NVRTC and no GPU."""

from collections.abc import Iterator
from importlib.resources import files

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
        f"few, {ranks} columns, {tokens} tokens, {bits} bits, {least}": hopper.Variant(
            bits, ranks, tokens, bfloat, entries=not least, wide=not least
        ).source()
        for least in (True, False)
        for ranks, tokens in ((8, 1), (8, 2), (8, 4), (16, 1), (16, 2))
        for bits, bfloat in BITS
    },
}


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That of torch, or where torch is for the CPU alone, the one that the extra `dev` installs."""
    if torch.version.cuda is None:
        monkeypatch.setattr(torch.version, "cuda", "13")
    cuda_driver.compiler.cache_clear()
    if cuda_driver.compiler() is None:
        pytest.skip("no NVRTC: pip install 'nvidia-cuda-nvrtc<14'")
    yield
    cuda_driver.compiler.cache_clear()


@pytest.mark.parametrize("name", SOURCES)
def test_compiles(name, nvrtc):
    assert cuda_driver._compiled(SOURCES[name], "sm_90a")


def test_nothing_is_left_out():
    texts = [path.read_text("utf-8") for path in files("bitstack.kernels").iterdir() if path.name.endswith(".cu")]
    assert texts
    assert all(any(text in source for source in SOURCES.values()) for text in texts)
