"""The tables of docs/kernels.md: made from kept results, and from nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitstack.tools.bench import kernels_doc
from bitstack.tools.bench.kernels_doc import BEGIN, END
from tests.tools.conftest import the_line

FRAME = f"before\n\n{BEGIN}\nold\n{END}\nafter\n"
MACHINE = {"hardware": {"cpu": "CPU 1", "gpu": "GPU 1"}, "versions": {"torch": "9.9"}, "method": "CUDA graph replay"}


def row(name: str, tokens: int, blocks: int, time: float | None, **more: Any) -> dict[str, Any]:
    known = {"name": name, "rows": 64, "columns": 128, "tokens": tokens, "blocks": blocks, "dtype": "bfloat16"}
    if time is not None:
        # With x and y, what 4.3 TB/s take 2 µs for.
        known |= {"microseconds": time, "nbytes": 8_600_000 - (64 + 128) * 2, "error_rms": 1e-3, "error_max": 0.01}
    return known | more


@pytest.fixture
def measured() -> dict[str, Any]:
    rows = [
        row("cublas", 1, 0, 31.0),
        row("nf4", 1, 0, None, skipped="not installed"),
        row("sign", 1, 1, 5.0),
        row("sign", 1, 4, 16.0, error_max=0.02),
        row("default", 1, 4, None, refused="wrong result"),
        row("cublas", 512, 0, 100.0),
        row("sign", 512, 4, 125.0),
    ]
    return {"rows": rows, "left_out": [row("sign", 2048, 4, None)], "copy_bandwidth": 4.3e12} | MACHINE


@pytest.fixture
def models() -> dict[str, Any]:
    resize = {"tables": 15, "blocks": 17, "bytes_more": 3 << 20, "logits_changed": True, "as_a_new_graph": True}
    resize |= {"back_as_before": True, "grow_milliseconds": 7.0, "grow_until_used_milliseconds": 9.0}
    resize |= {"shrink_milliseconds": 1.0, "shrink_until_used_milliseconds": 3.0}
    packed = {"variant": "packed", "budget": 2 << 30, "resident_bytes": 2 << 30, "tokens_per_second": 250.04}
    packed |= {"milliseconds": 4.0, "peak_allocated_bytes": 3 << 30, "resize": resize}
    return {"model": "8b", "models": [packed, {"variant": "bf16", "failed": "no memory"}]} | MACHINE


def made(result: dict[str, Any], folder: Path) -> str:
    (folder / "a.json").write_text(json.dumps(result))
    (folder / "page.md").write_text(FRAME)
    assert kernels_doc.main([str(folder / "a.json"), "-o", str(folder / "page.md")]) == 0
    return (folder / "page.md").read_text()


def test_the_committed_page_is_what_the_kept_results_give(repo_root: Path) -> None:
    folder, page = repo_root / "tools/bench/results", repo_root / "docs/kernels.md"
    kept = [*sorted(folder.glob("kernels-*.json")), *sorted(folder.glob("model-*.json"))]
    committed = page.read_text()
    fresh = kernels_doc.rewritten(committed, list(map(str, kept)), page)
    assert fresh == committed, "run: python -m bitstack.tools.bench.kernels_doc (docs/kernels.md has the whole command)"


def test_every_measured_row_is_on_the_page(measured: dict[str, Any], tmp_path: Path) -> None:
    page = made(measured, tmp_path)
    assert page.startswith(f"before\n\n{BEGIN}\n\n### a\n")
    assert page.endswith(f"{END}\nafter\n")
    plain = page.replace("\N{MULTIPLICATION SIGN}", "x")
    for line in (
        "GPU 1, CUDA graph replay; torch 9.9. Kept in `a.json`.",
        "| MxN, chain | 1 | 4 | floor, 4 | of the floor, 4 | `cublas` | `nf4` |",
        "| 64x128, sign | 5.0 | 16.0 | 2.0 | 12 % | 31.0 |  |",
        "| 64x128, default |  |  |  |  | 31.0 |  |",
        "| 64x128, sign | 125.0 (x1.25) |",
        "| 64x128, cublas | 100.0 |",
        "- nf4, 64x128, tokens 1, bfloat16: not installed",
        "- default, 64x128, tokens 1, 4 blocks, bfloat16: wrong result",
        "- sign, 64x128, tokens 2048, 4 blocks, bfloat16: the time was over",
    ):
        assert line in plain.splitlines()
    assert "4.30 TB/s" in plain
    assert "0.02 at most (sign, 64x128, tokens 1, 4 blocks, bfloat16)" in plain


def test_the_floor_is_the_fastest_that_was_seen(measured: dict[str, Any], tmp_path: Path) -> None:
    measured["rows"][2]["microseconds"] = 1.0
    page = made(measured, tmp_path)
    assert "at 8.60 TB/s" in page
    assert "| 1.0 | 16.0 | 1.0 | 6 % |" in page


def test_a_model_and_its_resizing_are_on_the_page(models: dict[str, Any], tmp_path: Path) -> None:
    page = made(models, tmp_path)
    assert "| packed, 2.0 GiB | 2.00 | 250.0 | 4.00 | 3.00 |" in page.splitlines()
    assert "| bf16: no memory |  |  |  |  |" in page.splitlines()
    assert "17 blocks of 15 tables, 3 MiB more, in 7.0 ms, 9.0 ms until the first token" in page
    assert "gave the logits of a new one" in page
    models["models"][0]["resize"]["as_a_new_graph"] = False
    assert "did **not** survive it" in made(models, tmp_path)


def test_making_it_twice_changes_nothing(measured: dict[str, Any], tmp_path: Path) -> None:
    once = made(measured, tmp_path)
    assert kernels_doc.main([str(tmp_path / "a.json"), "-o", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == once


@pytest.mark.parametrize(
    ("page", "source", "message"),
    [
        ("no markers", "{}", "needs the lines"),
        (FRAME, "{}", "is no result of"),
        (FRAME, "[]", "is no result of"),
        (FRAME, '{"rows": []}', "is no result of"),
        (FRAME, "no JSON", "no JSON that can be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    page: str, source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "a.json").write_text(source)
    assert kernels_doc.main([str(tmp_path / "a.json"), "-o", str(tmp_path / "page.md")]) == 1
    assert message in the_line(capsys.readouterr().err.replace("kernels_doc:", "bstk:", 1))
    assert (tmp_path / "page.md").read_text() == page
