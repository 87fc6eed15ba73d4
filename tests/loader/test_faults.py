"""Whole models loaded from servers that go wrong: the weights are those of the file, or there is one error."""

from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bsformat.errors import BstkError, IntegrityError
from tests.bsformat import faulty
from tests.bsformat.faulty import FaultyServer, serving
from tests.bsformat.test_faults import (
    IMPATIENT,
    LASTING,
    PASSING,
    RATES,
    SLOW,
    Clock,
    ended,
    network,
    one_line,
    watched,
)
from tests.loader.held import payloads
from tests.loader.tiny import write_tiny

FAULTS = {**PASSING, **SLOW, **{name: fault for name, (fault, _) in LASTING.items()}, "wrong bytes": faulty.wrong_bytes}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("faults") / "tiny.bstk"
    write_tiny(path, padded_head=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def weights(file: bytes) -> Any:
    """The payloads of a sound load."""
    return payloads(bitstack.load(bsformat.MemorySource(file), "100%", "cpu", torch.float32))


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even the tiny file takes some twenty requests, four at once."""
    from bitstack.loader import stream_blocks

    def small(container: bsformat.Container, first: int, stop: int, **options: Any) -> Any:
        return stream_blocks(container, first, stop, request_bytes=2000, **options)

    monkeypatch.setattr("bitstack.loader.resident.stream_blocks", small)


def test_without_faults(file: bytes, weights: Any, small_requests: None) -> None:
    with serving(FaultyServer(file)) as server:
        model = bitstack.load(server.url(), "100%", "cpu", torch.float32, network=network(Clock()))
        assert payloads(model) == weights
        container = model.bitstack.container
    # The head and one range, each byte once.
    with bsformat.open(bsformat.MemorySource(file)) as sound:
        head = sound.superblock.head_length
        prefix = sound.superblock.file_length - sound.superblock.blocks_offset
    assert server.sent == head + prefix
    assert container.source.bytes_read == server.sent
    assert server.requests > 15


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_load_gives_the_weights_or_one_error(
    name: str, rate: float, file: bytes, weights: Any, small_requests: None
) -> None:
    settings = network(Clock(), **(IMPATIENT if name in SLOW else {}))
    with serving(FaultyServer(file, FAULTS[name], rate, seed=7, spared=1)) as server:
        model, error = ended(
            lambda: watched(
                lambda: bitstack.load(server.url(), "100%", "cpu", torch.float32, network=settings), seconds=60
            )
        )
        if error is None:
            assert payloads(model) == weights
            assert name not in LASTING or server.faults == 0
        else:
            one_line(error, server.url())
            assert isinstance(error, LASTING[name][1] if name in LASTING else IntegrityError)
            assert name in LASTING or name == "wrong bytes"


def test_growing_over_a_bad_link_leaves_what_was_there(file: bytes, weights: Any, small_requests: None) -> None:
    with serving(FaultyServer(file)) as server:
        model = bitstack.load(server.url(), "100%", "cpu", torch.float32, network=network(Clock(), attempts=2))
        model.bitstack.resize(model.bitstack.container.planner.minimum_bytes + model.bitstack.widening)
        small = payloads(model)
        server.fault, server.rate = faulty.cut, 1.0
        with pytest.raises(BstkError):
            watched(lambda: model.bitstack.resize("100%"))
        assert payloads(model) == small
        server.rate = 0.0
        model.bitstack.resize("100%")
        assert payloads(model) == weights
