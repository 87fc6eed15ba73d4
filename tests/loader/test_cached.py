"""Loading and resizing a model from a URL with a cache: what is asked of the server."""

from pathlib import Path

import pytest
import torch

import bitstack
from bsformat import BlockCache
from bsformat.superblock import SIZE
from tests.servers import S3, Scripted


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def url(scripted: Scripted, tiny_bytes: bytes) -> str:
    scripted.data = tiny_bytes
    return scripted.url("tiny.bstk")


def test_load_twice_grow_and_shrink(scripted: Scripted, url: str, cache: BlockCache) -> None:
    ids = torch.arange(20)[None]

    def load(budget: str) -> torch.Tensor:
        model = bitstack.load(url, budget, "cpu", cache=cache)
        logits: torch.Tensor = model(ids).logits
        model.bitstack.close()
        return logits

    def asked() -> int:
        got = sum(min(r.stop, len(scripted.data)) - r.start for r in scripted.requests)
        scripted.requests.clear()
        return got

    with torch.inference_mode():
        half = load("50%")
        assert asked() > SIZE
        assert torch.equal(load("50%"), half)
        assert asked() == SIZE
        load("40%")
        assert asked() == SIZE
        model = bitstack.load(url, "50%", "cpu", cache=cache)
        assert asked() == SIZE
        before = model.bitstack.plan
        after = model.bitstack.resize("80%")
        container = model.bitstack.container
        first = container.block(before.n_blocks).offset
        assert asked() == after.offset + after.length - first
        grown = model(ids).logits
        model.bitstack.resize("50%")
        assert torch.equal(model(ids).logits, half)
        model.bitstack.resize("80%")
        assert torch.equal(model(ids).logits, grown)
        assert asked() == 0
        model.bitstack.close()
        assert torch.equal(load("80%"), grown)
        assert asked() == SIZE


def test_over_s3(s3: S3, tiny_bytes: bytes, cache: BlockCache) -> None:
    uri = s3.put("cached.bstk", tiny_bytes)
    for turn in range(2):
        model = bitstack.load(uri, "70%", "cpu", cache=cache, **s3.storage_options)
        source = model.bitstack.container.source
        assert turn == 0 or (source.requests, source.bytes_read) == (1, SIZE)
        model.bitstack.close()
