"""What a budget means in bytes."""

import os
from pathlib import Path

import pytest
import torch

import bsformat
from bitstack.loader import budget as budgets
from bitstack.loader import resolve_budget
from bsformat.errors import BudgetError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (12345, 12345),
        ("12345", 12345),
        ("3KiB", 3072),
        ("3KB", 3000),
        ("1.5 MiB", 3 << 19),
        ("2GiB", 2 << 30),
        ("0.001GB", 1_000_000),
        ("8Kb", 1000),
    ],
)
def test_sizes(container: bsformat.Container, text: str | int, size: int) -> None:
    assert resolve_budget(text, container, CPU) == size


@pytest.mark.parametrize(("text", "share"), [("100%", 1.0), ("60%", 0.6), ("12.5 %", 0.125), ("0%", 0.0)])
def test_percentages_are_of_all_blocks(container: bsformat.Container, text: str, share: float) -> None:
    assert resolve_budget(text, container, CPU) == int(share * container.total_bytes)


@pytest.mark.parametrize("text", ["", "much", "-1", -1, "80 apples", "%", "1e6", "80MiB 2", "AUTO!", True, 0.5, [80]])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nonsense_is_refused_in_one_line(container: bsformat.Container, text: str, device: str) -> None:
    with pytest.raises(BudgetError) as caught:
        resolve_budget(text, container, torch.device(device))
    assert caught.value.reason == "budget-invalid"
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("budget", ["auto", None])
def test_auto_takes_four_fifths_of_what_is_available(
    container: bsformat.Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str | None
) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(budgets, "MEMINFO", str(meminfo))
    meminfo.write_text("MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:     30 kB\nCached: 29 kB\n")
    assert container.total_bytes > 30 << 10
    assert resolve_budget(budget, container, CPU) == 24 << 10
    meminfo.write_text("MemAvailable: 3000000 kB\n")
    assert resolve_budget(budget, container, CPU) == container.total_bytes


@pytest.mark.parametrize("meminfo", [None, "MemFree: 7 kB\n", "MemAvailable: much\n"])
def test_auto_asks_the_c_library_where_linux_says_nothing(
    container: bsformat.Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str | None
) -> None:
    if meminfo is not None:
        (tmp_path / "meminfo").write_text(meminfo)
    monkeypatch.setattr(budgets, "MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert resolve_budget("auto", container, CPU) == 5 * 4096 * 8 // 10


def test_auto_is_refused_where_nobody_knows(
    container: bsformat.Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(budgets, "MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(os, "sysconf", unknown)
    for device in (CPU, torch.device("meta")):
        with pytest.raises(BudgetError, match="name a budget") as caught:
            resolve_budget("auto", container, device)
        assert caught.value.reason == "budget-invalid"
    assert resolve_budget("9KiB", container, CPU) == 9 << 10


def test_auto_on_cuda_asks_the_driver(container: bsformat.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 10_000, 1 << 40

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    assert resolve_budget("auto", container, torch.device("cuda:1")) == 8000
    assert asked == [torch.device("cuda:1")]
