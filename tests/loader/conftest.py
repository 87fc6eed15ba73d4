"""What the tests of the loader share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from tests.loader.tiny import WatchedSource, write_tiny


@pytest.fixture(scope="session", params=["short head", "long head"])
def tiny_bytes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny file, once with some blocks in the first read of 16 KiB, once with none."""
    path = tmp_path_factory.mktemp("loader") / "tiny.bstk"
    write_tiny(path, padded_head=request.param == "long head")
    return path.read_bytes()


@pytest.fixture
def source(tiny_bytes: bytes) -> WatchedSource:
    """The tiny file, watched."""
    return WatchedSource(tiny_bytes)


@pytest.fixture
def container(source: WatchedSource) -> Iterator[bsformat.Container]:
    """The tiny file, opened; the reads of its head are forgotten."""
    with bsformat.open(source) as opened:
        source.forget()
        yield opened


Load = Callable[..., Any]


@pytest.fixture
def load(container: bsformat.Container) -> Load:
    """`bitstack.load` of the tiny file on the CPU, at a number of blocks."""

    def at(n_blocks: int, dtype: torch.dtype = torch.float32) -> Any:
        model = bitstack.load(container, "100%", "cpu", dtype)
        model.bitstack.resize(container.planner.resident_bytes(n_blocks) + model.bitstack.widening)
        assert model.bitstack.plan.n_blocks == n_blocks
        return model

    return at
