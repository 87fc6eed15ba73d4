"""The page of tables: made from kept results, and from nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bitstack.tools import plot
from bitstack.tools.bench import quality_doc
from bitstack.tools.bench.quality_doc import BEGIN, END
from bitstack.tools.evaluation.results import read_result
from tests.tools.conftest import the_line

FRAME = f"before\n\n{BEGIN}\nold\n{END}\nafter\n"


def zero_shot(value: float) -> dict[str, Any]:
    return {
        "tasks": {"piqa": {"acc": value, "acc_norm": value + 0.1}, "winogrande": {"acc": value}},
        "average": value,
        "average_norm": value + 0.05,
    }


def point(size: int, value: float | None, accuracy: float) -> dict[str, Any]:
    return {
        "budget": size,
        "resident_bytes": size,
        "bits_per_parameter": 2.5,
        "perplexity": value,
        "perplexity_by_text": {"a.txt": value, "b.txt": 7.0},
        "zero_shot": zero_shot(accuracy),
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """All that a run can give: two texts, tasks, another file, the dense model, a baseline that wins, one skipped."""
    mib = 1 << 20
    rtn = {"name": "rtn", "bits": 3, "group_size": 64, "embeddings": "same", "calibrated": False}
    return {
        "file": "model.bstk",
        "root": "ab" * 32,
        "model": "tiny",
        "text": {"name": "a.txt", "window": 64, "windows": 4, "tokens": 256, "blake3": "0" * 64},
        "texts": [{"name": name, "window": 64, "windows": 4} for name in ("a.txt", "b.txt")],
        "dtype": "float32",
        "zero_shot": {"limit": 9, "tasks": {t: {"file": t, "documents": 20} for t in ("piqa", "winogrande")}},
        "points": [point(2 * mib, None, 0.25), point(3 * mib, 31.25, 0.5)],
        "compare": {"reference": {"points": [point(3 * mib, 1234.5, 0.375)]}},
        "dense": point(9 * mib, 11.125, 0.625),
        "calibration": {"text": "self", "windows": 4, "window": 512},
        "baselines": [
            rtn
            | point(3 * mib + 7, 25.0, 0.4375)
            | {"ours": point(3 * mib, 31.25, 0.5), "advantage": {"a.txt": -0.2, "b.txt": 0.0}}
        ],
        "baseline_wins": [rtn | {"resident_bytes": 3 * mib + 7, "text": "a.txt", "lower_by": 0.2}],
        "skipped": [rtn | {"name": "awq", "reason": "no mappings for this architecture"}],
        "hardware": {"cpu": "CPU 1", "threads": 2},
        "versions": {"torch": "9.9"},
    }


def cells(page: str, start: str) -> list[str]:
    """Of the first row that starts so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def made(result: dict[str, Any], folder: Path, *options: str) -> str:
    source, page = folder / "eval-some.json", folder / "quality.md"
    source.write_text(json.dumps(result))
    page.write_text(FRAME)
    assert quality_doc.main([str(source), "-o", str(page), *options]) == 0
    return page.read_text()


def test_the_committed_page_is_what_the_kept_results_give(repo_root: Path, tmp_path: Path) -> None:
    kept = sorted((repo_root / "tools/bench/results").glob("eval-*.json"))
    assert kept
    committed = (repo_root / "docs/quality.md").read_text()
    fresh = quality_doc.rewritten(
        committed.partition(BEGIN)[0] + BEGIN + END + committed.partition(END)[2],
        list(map(str, kept)),
        repo_root / "docs/quality.md",
    )
    assert fresh == committed, "run: python -m bitstack.tools.bench.quality_doc (docs/quality.md has the whole command)"
    for path in kept:
        for measured in read_result(path)["points"]:
            assert any(f"| {measured['budget'] / (1 << 20):.1f} |" in line for line in committed.splitlines())


def test_every_part_of_a_result_is_on_the_page(result: dict[str, Any], tmp_path: Path) -> None:
    page = made(result, tmp_path)
    assert page.startswith(f"before\n\n{BEGIN}\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "old" not in page
    assert "### some\n" in page
    assert cells(page, "2.0") == ["2.0", "2.50", "∞", "7.000", "25.0", "", "", ""]
    assert cells(page, "3.0") == ["3.0", "2.50", "31.25", "7.000", "50.0", "1,234", "7.000", "37.5"]
    assert cells(page, "dense")[:6] == ["dense", "9.0", "2.50", "11.12", "7.000", "62.5"]
    baseline = cells(page, "rtn 3 bits, embeddings 3")
    assert baseline[1:] == ["3.0", "2.50", "25.00", "7.000", "43.8", "31.25", "7.000", "50.0", "-20.0 %"]
    assert "A baseline has the lower perplexity in 1 of 2 comparisons:" in page
    assert "- rtn 3 bits, embeddings 3, 3.0 MiB, a.txt: 20.00 % below ours\n" in page
    assert "- Not measured: awq 3 bits, embeddings 3: no mappings for this architecture\n" in page
    assert cells(page, "`reference` 3.0 MiB") == ["`reference` 3.0 MiB", "37.5", "37.5", "37.5", "42.5"]
    for text in ("Questions: piqa 9, winogrande 9", "saw 2,048 tokens of self", "CPU 1 in float32; torch 9.9"):
        assert text in page
    assert "![" not in page


def test_a_number_that_changes_changes_the_page(result: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(result)
    other["baselines"][0]["ours"]["perplexity_by_text"]["a.txt"] = 31.75
    assert made(result, tmp_path) != made(other, tmp_path)


def test_making_it_twice_changes_nothing(result: dict[str, Any], tmp_path: Path) -> None:
    once = made(result, tmp_path)
    assert quality_doc.main([str(tmp_path / "eval-some.json"), "-o", str(tmp_path / "quality.md")]) == 0
    assert (tmp_path / "quality.md").read_text() == once


def test_plots_are_drawn_and_shown(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitstack[plot]'")
    page = made(result, tmp_path, "--plots")
    assert (tmp_path / "plots/eval-some.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "](plots/eval-some.png)" in page


def test_a_perplexity_that_is_not_finite_is_not_drawn(result: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitstack[plot]'")
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plot.panel(axes, result, "a.txt")
    assert [line.get_label() for line in axes.lines] == [
        "this file",
        "reference",
        "rtn, embeddings as the layers",
        "dense, 16 bits",
    ]
    assert list(axes.lines[0].get_xdata()) == [3.0]


@pytest.mark.parametrize(
    ("page", "source", "message"),
    [
        ("no markers", "{}", "needs the lines"),
        (f"{END}{BEGIN}", "{}", "needs the lines"),
        (FRAME, "{}", "is no result of bstk eval"),
        (FRAME, "[]", "is no result of bstk eval"),
        (FRAME, "no JSON", "no JSON that can be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    page: str, source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "a.json").write_text(source)
    assert quality_doc.main([str(tmp_path / "a.json"), "-o", str(tmp_path / "page.md")]) == 1
    err = capsys.readouterr().err
    assert message in the_line(err.replace("quality_doc:", "bstk:", 1))
    assert (tmp_path / "page.md").read_text() == page
