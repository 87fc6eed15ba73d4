"""What a budget means in bytes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import bsformat
from bitstack.loader import auto_budget, cgroup, free, free_bytes, resolve_budget
from bitstack.loader import memory as memory_module
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


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes /proc/meminfo; there are no control groups."""
    monkeypatch.setattr(free, "MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(cgroup, "PROC", str(tmp_path / "nowhere"))
    monkeypatch.setattr(memory_module, "heap_is_steady", lambda: True)  # so that it is not told, for the tests to come

    def write(text: str) -> None:
        (tmp_path / "meminfo").write_text(text)

    return write


@dataclass
class FixedNeeds:
    """Needs that were not worked out."""

    cache_bytes: int = 5 << 20
    workspace_bytes: int = 3 << 20
    cache_shape: str = "7 tokens x 2"

    def to_json(self) -> dict[str, int]:
        return {"cache_bytes": self.cache_bytes}


@pytest.mark.parametrize("budget", ["auto", None])
def test_auto_takes_what_is_available_but_for_a_spare(
    container: bsformat.Container, memory: Callable[[str], None], budget: str | None
) -> None:
    assert container.total_bytes > 30 << 10
    memory(f"MemTotal: 900000 kB\nMemFree: 1 kB\nMemAvailable:     {(64 << 10) + 30} kB\nCached: 29 kB\n")
    assert resolve_budget(budget, container, CPU) == 30 << 10
    memory("MemAvailable: 3000000 kB\n")
    assert resolve_budget(budget, container, CPU) == container.total_bytes


def test_auto_leaves_room_and_says_how_it_came_about(memory: Callable[[str], None]) -> None:
    memory(f"MemTotal: 9000000 kB\nMemAvailable: {4 << 20} kB\n")
    spare = (4 << 30) // 20
    needs = FixedNeeds()
    decided = auto_budget(CPU, lambda: needs, least=1000, most=9 << 30, held=1 << 20)
    assert decided.budget == decided.room == (4 << 30) + (1 << 20) - (8 << 20) - spare
    assert str(decided) == (
        "auto: 4.0 GiB free on cpu (system memory) + 1.0 MiB held - 5.0 MiB cache (7 tokens x 2) - 3.0 MiB workspace "
        "- 204.8 MiB spare = 3.8 GiB for weights"
    )
    assert decided.to_json() == {
        "device": "cpu",
        "free_bytes": 4 << 30,
        "free_of": "system memory",
        "total_bytes": 9000000 << 10,
        "held_bytes": 1 << 20,
        "cache_bytes": 5 << 20,
        "spare_bytes": spare,
        "room_bytes": decided.room,
        "budget_bytes": decided.budget,
    }
    least = auto_budget(CPU, None, least=1000, most=2000)
    assert least.budget == 2000
    assert str(least).endswith("= 3.8 GiB for weights, more than the 2.0 KiB of all blocks")


def test_auto_below_the_minimum_is_refused_with_the_sum(
    container: bsformat.Container, memory: Callable[[str], None]
) -> None:
    memory(f"MemAvailable: {(64 << 10) + 1} kB\n")
    with pytest.raises(BudgetError, match=r"auto: 64.0 MiB free on cpu .* below the minimum of this file") as caught:
        resolve_budget("auto", container, CPU)
    assert caught.value.reason == "budget-too-small"
    assert caught.value.where == container.uri
    with pytest.raises(BudgetError, match=r"MiB too little.*use a shorter context"):
        auto_budget(CPU, FixedNeeds, least=0, most=1)


def test_where_memory_is_short_the_heap_becomes_steady(
    memory: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(memory_module, "steady_heap", lambda: told.append(True))
    monkeypatch.setattr(memory_module, "heap_is_steady", lambda: bool(told))

    def needs() -> FixedNeeds:
        return FixedNeeds(workspace_bytes=(3 if told else 300) << 20)

    memory(f"MemAvailable: {1 << 20} kB\n")
    assert auto_budget(CPU, needs, least=0, most=400 << 20).needs == FixedNeeds(workspace_bytes=300 << 20)
    assert told == []
    assert auto_budget(CPU, needs, least=0, most=900 << 20).needs == FixedNeeds()
    assert told == [True]


@pytest.mark.parametrize("meminfo", [None, "MemFree: 7 kB\n", "MemAvailable: much\n"])
def test_auto_asks_the_c_library_where_linux_says_nothing(
    container: bsformat.Container, memory: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, meminfo: str | None
) -> None:
    if meminfo is not None:
        memory(meminfo)
    pages = (64 << 20) // 4096 + 5
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert resolve_budget("auto", container, CPU) == 5 * 4096


def test_auto_is_refused_where_nobody_knows(
    container: bsformat.Container, memory: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    for device in (CPU, torch.device("meta")):
        with pytest.raises(BudgetError, match="name a budget") as caught:
            resolve_budget("auto", container, device)
        assert caught.value.reason == "budget-invalid"
        assert free_bytes(device) is None
    assert resolve_budget("9KiB", container, CPU) == 9 << 10


class Gpu:
    """What torch says of a GPU of 10 GiB of which the driver has 1000 MiB, torch's allocator 300 MiB."""

    asked: ClassVar[list[torch.device]] = []

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch, fraction: float = 1.0) -> None:
        def answer(value: object) -> Callable[[torch.device], object]:
            def ask(device: torch.device) -> object:
                cls.asked.append(device)
                return value

            return ask

        cls.asked.clear()
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "mem_get_info", answer((1000 << 20, 10 << 30)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", answer(300 << 20))
        monkeypatch.setattr(torch.cuda, "memory_allocated", answer(80 << 20))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", answer(fraction))


def test_on_cuda_what_the_allocator_keeps_unused_is_free(
    container: bsformat.Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gpu.install(monkeypatch)
    gpu = torch.device("cuda:1")
    decided = auto_budget(gpu, None, least=0, most=9 << 30)
    assert decided.free.bytes == (1000 + 300 - 80) << 20
    assert decided.free.bound == "memory of cuda:1"
    assert decided.budget == (1220 - 128) << 20
    assert resolve_budget("auto", container, gpu) == container.total_bytes
    assert set(Gpu.asked) == {gpu}


@pytest.mark.parametrize(("fraction", "left"), [(0.05, (512 - 80) << 20), (0.001, 0), (0.9, 1220 << 20)])
def test_on_cuda_torch_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch, fraction: float, left: int) -> None:
    Gpu.install(monkeypatch, fraction)
    assert free_bytes(torch.device("cuda")) == left
    assert set(Gpu.asked) == {torch.device("cuda:3")}


@pytest.mark.parametrize("error", [RuntimeError("not with this allocator"), AttributeError("no such function")])
def test_on_cuda_a_share_that_cannot_be_told_is_none(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(device: torch.device) -> float:
        raise error

    Gpu.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", fail)
    assert free_bytes(torch.device("cuda:0")) == 1220 << 20
