"""Loading, growing and loading in the background from a file in several volumes, and what can go wrong with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bsformat import BlockCache, Network
from bsformat.errors import BstkError
from bsformat.superblock import SIZE
from tests.bsformat.volumes import names_of
from tests.loader.tiny import write_tiny
from tests.servers import Nginx

IDS = torch.tensor([[3, 41, 99, 0, 57, 40, 39, 80, 79, 12]])
QUICK = Network(attempts=2, pause=0.001, longest_pause=0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in one object, and in volumes."""
    place = tmp_path_factory.mktemp("volumes")
    write_tiny(place / "one.bstk", padded_head=False)
    size = (place / "one.bstk").stat().st_size
    made = bsformat.repack(place / "one.bstk", place / "tiny.bstk", volume_size=size // 4)
    assert made.n_volumes > 3
    return place


@pytest.fixture
def url(nginx: Nginx, folder: Path) -> str:
    for name in names_of(folder / "tiny.bstk"):
        nginx.put(name, (folder / name).read_bytes())
    return nginx.url("tiny.bstk")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def expected(folder: Path, budget: int | str) -> torch.Tensor:
    model = bitstack.load(folder / "one.bstk", budget, "cpu")
    out = logits(model)
    model.bitstack.close()
    return out


def budget_into(url: str, number: int, folder: Path) -> int:
    """The budget of a prefix that ends with the first block of a volume, counted from 0."""
    with bsformat.open(url, cache=False) as container:
        resident = container.planner.resident_bytes(container.volumes[number].first_block + 1)
    model = bitstack.load(folder / "one.bstk", "100%", "cpu")
    wider: int = model.bitstack.widening
    model.bitstack.close()
    return resident + wider


def volumes_asked(nginx: Nginx) -> set[str]:
    asked = {record.uri.removeprefix("/") for record in nginx.log()}
    nginx.clear()
    return asked


def test_load_grow_and_shrink(nginx: Nginx, url: str, folder: Path) -> None:
    names = names_of(folder / "tiny.bstk")
    small = budget_into(url, 2, folder)
    nginx.clear()
    model = bitstack.load(url, small, "cpu", cache=False)
    assert volumes_asked(nginx) == set(names[:3])
    assert torch.equal(logits(model), expected(folder, small))
    model.bitstack.resize("100%")
    assert volumes_asked(nginx) == set(names[2:])
    assert torch.equal(logits(model), expected(folder, "100%"))
    model.bitstack.resize(small)
    assert torch.equal(logits(model), expected(folder, small))
    assert volumes_asked(nginx) == set()
    model.bitstack.close()


def test_a_local_file_and_one_from_the_cache(nginx: Nginx, url: str, folder: Path, tmp_path: Path) -> None:
    whole = expected(folder, "100%")
    cache = BlockCache(tmp_path / "cache", 1 << 30)
    for uri in (folder / "tiny.bstk", url, url):
        nginx.clear()
        model = bitstack.load(uri, "100%", "cpu", cache=cache)
        assert torch.equal(logits(model), whole)
        model.bitstack.close()
    assert [(record.uri, record.bytes) for record in nginx.log()] == [("/tiny.bstk", SIZE)]


def test_progressive_loading(url: str, folder: Path) -> None:
    model = bitstack.load(url, "100%", "cpu", progressive=True, cache=False)
    model.bitstack.growth.wait(60)
    assert model.bitstack.plan.n_blocks == len(model.bitstack.container)
    assert torch.equal(logits(model), expected(folder, "100%"))
    model.bitstack.close()


@pytest.mark.parametrize("fault", ["missing", "truncated", "swapped", "replaced"])
def test_a_volume_that_goes_wrong_while_the_model_is_loaded(nginx: Nginx, url: str, folder: Path, fault: str) -> None:
    """A growth that meets it changes nothing; when it is right again the same growth succeeds."""
    names = names_of(folder / "tiny.bstk")
    small = budget_into(url, 2, folder)
    model = bitstack.load(url, small, "cpu", cache=False, network=QUICK)
    before, plan = logits(model), model.bitstack.plan
    third, fourth = ((folder / name).read_bytes() for name in names[2:4])
    if fault == "missing":
        (nginx.root / names[3]).unlink()
    elif fault == "truncated":
        nginx.put(names[3], fourth[:-1])
    elif fault == "swapped":
        nginx.put(names[3], third)
    else:  # the one that was read from already, and so is pinned
        nginx.put(names[2], third + b"\0")
    with pytest.raises(BstkError) as raised:
        model.bitstack.resize("100%")
    reasons = {
        "missing": {"volume-missing"},
        "truncated": {"volume-truncated"},
        "swapped": {"volume-truncated", "volume-trailing-bytes"},
        "replaced": {"source-changed"},
    }
    assert raised.value.reason in reasons[fault]
    assert raised.value.where == nginx.url(names[2] if fault == "replaced" else names[3])
    assert model.bitstack.plan == plan
    assert torch.equal(logits(model), before)
    if fault != "replaced":
        nginx.put(names[3], fourth)
        model.bitstack.resize("100%")
        assert torch.equal(logits(model), expected(folder, "100%"))
    model.bitstack.close()
