"""Random resizes under generation, and progressive loads: short runs, and that the checks find what they are for."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import bsformat
from bitstack.gate import Gate
from bitstack.tools.bench import progressive, resizing
from tests.loader.tiny import write_tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resizing") / "tiny.bstk"
    write_tiny(path, padded_head=True)
    return path


def test_resizes_under_generation_equal_fresh_loads(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["resizing", str(file), "--resizes", "100", "--plans", "12"])
    resizing.main()
    out = json.loads(capsys.readouterr().out)
    assert (out["resizes"], out["plans"]) == (100, 12)
    assert out["allocated_before"] == out["allocated_after"]
    assert out["passes_by_others"] > 10
    assert out["plans_seen_by_others"] > 2
    assert out["bytes_added_and_dropped"] > 0


def test_a_pass_that_sees_two_plans_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the gate, there are such passes."""

    @contextmanager
    def anybody(self: Gate) -> Iterator[None]:
        yield

    monkeypatch.setattr(Gate, "passing", anybody)
    with bsformat.open(file) as container, pytest.raises(resizing.Wrong, match=r"computed what no plan does"):
        resizing.measure(container, resizes=3000, plans=8)


def test_bytes_that_stay_are_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([1000, 1001])
    monkeypatch.setattr(resizing, "allocated", lambda device: next(sizes))
    with bsformat.open(file) as container, pytest.raises(resizing.Wrong, match="1001 bytes are allocated, 1000 were"):
        resizing.measure(container, resizes=2, plans=2)


def test_a_progressive_load_is_measured_beside_a_whole_one(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rate", "1MB", "--delay", "0.01", "--tokens", "3", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["progressive", str(file), *options])
    progressive.main()
    out = json.loads(capsys.readouterr().out)
    whole, stepwise = out["whole"], out["progressive"]
    assert whole["tokens"] == 3
    assert whole["tokens_before_whole_budget"] == 0
    assert stepwise["began_with_bytes"] < whole["began_with_bytes"] == whole["resident_bytes"]
    assert stepwise["resident_bytes"] == whole["resident_bytes"]
    assert stepwise["tokens"] >= stepwise["tokens_before_whole_budget"] + 2
    assert out["link"] == {"bytes_per_second": 1_000_000, "delay": 0.01}


def test_storages_are_counted_once() -> None:
    device = torch.device("cpu")
    before = resizing.allocated(device)
    data = torch.zeros(1000, dtype=torch.uint8)
    views = [data[:10], data.view(10, 100)]
    assert resizing.allocated(device) - before == 1000
    del data, views
    assert resizing.allocated(device) == before


def test_tensors_without_memory_are_not_counted() -> None:
    """Such as those that torch.compile traced with, which its caches keep alive."""
    device = torch.device("cpu")
    before = resizing.allocated(device)
    with FakeTensorMode():
        traced = torch.zeros(1000)
    under = torch.zeros(1000)
    functional = torch._to_functional_tensor(under)
    assert resizing.allocated(device) == before + under.nbytes
    assert traced.device == functional.device == device
