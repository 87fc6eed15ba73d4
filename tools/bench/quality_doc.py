"""The tables of docs/quality.md: ``python -m bitstack.tools.bench.quality_doc RESULT.json … -o docs/quality.md``.

Takes what ``bstk eval --json`` printed, and rewrites the part of the page between its two markers; what people wrote
around it stays. ``--plots`` also draws each result into a folder ``plots`` beside the page; the page shows those that
are there. No number on the page is typed by hand.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitstack.tools import plot
from bitstack.tools.console import number
from bitstack.tools.ending import ended
from bitstack.tools.evaluation.results import label, read_result

from .markers import between, from_repository, rewrite, table

BEGIN = "<!-- made by bitstack.tools.bench.quality_doc: begin -->"
END = "<!-- made by bitstack.tools.bench.quality_doc: end -->"
_MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULT.json", nargs="+", help="what bstk eval --json printed")
    parser.add_argument("-o", "--output", metavar="PAGE.md", required=True, help="the page, with its two markers")
    parser.add_argument("--plots", action="store_true", help="draw each result beside the page (needs matplotlib)")
    args = parser.parse_args(argv)

    def run() -> int:
        page = Path(args.output)
        if args.plots:
            plot.need_matplotlib()
            (page.parent / "plots").mkdir(exist_ok=True)
            for path in args.results:
                plot.save_png(os.fspath(page.parent / "plots" / f"{Path(path).stem}.png"), read_result(path))
        rewrite(page, lambda old: rewritten(old, args.results, page))
        return 0

    return ended(run, "quality_doc")


def rewritten(old: str, results: Sequence[str], page: Path) -> str:
    """The page with new tables.

    Raises:
        WriteError: it lacks a marker, or they are not in order. ModelError: see `read_result`.
    """
    return between(old, BEGIN, END, lambda: "".join(section(Path(path), page) for path in results), page)


def section(path: Path, page: Path) -> str:
    """What one result says, under its file's name."""
    result = read_result(path)
    lines = [f"### {path.stem.removeprefix('eval-')}", "", _setting(result, path), ""]
    picture = page.parent / "plots" / f"{path.stem}.png"
    if picture.is_file():
        lines += [f"![Quality over resident bytes](plots/{picture.name})", ""]
    lines += [*table(*_budgets(result)), ""]
    if result["dense"]:
        lines += ["Beside it, each with the same file resized to exactly its bytes (*ours*):", ""]
        lines += [*table(*_baselines(result)), "", *_wins(result)]
    if result["skipped"]:
        lines += [f"- Not measured: {label(item)}: {item['reason']}" for item in result["skipped"]] + [""]
    if result["zero_shot"]:
        lines += ["Zero-shot accuracy by task, in percent:", "", *table(*_tasks(result)), ""]
    return "\n".join(lines) + "\n"


def _setting(result: dict[str, Any], path: Path) -> str:
    texts = "; ".join(f"{t['name']}, {t['windows']:,} windows of {t['window']:,} tokens" for t in result["texts"])
    machine = result["hardware"].get("gpu", result["hardware"]["cpu"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    said = f"`{result['model']}`, root `{result['root'][:16]}…`. Texts: {texts}."
    if result["zero_shot"]:
        limit = result["zero_shot"]["limit"]
        counts = {
            name: min(t["documents"], limit or t["documents"]) for name, t in result["zero_shot"]["tasks"].items()
        }
        said += " Questions: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + "."
    if calibration := result["calibration"]:
        tokens = calibration["windows"] * calibration["window"]
        said += f" Baselines that calibrate saw {tokens:,} tokens of {calibration['text']}."
    dtype = f" in {result['dtype']}" if result["dtype"] else ""
    return f"{said} {machine}{dtype}; {versions}. Kept in `{from_repository(path)}`."


def _budgets(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["MiB", "bits a parameter", *_measures(result)]
    for name in result["compare"]:
        header += [f"`{name}` {measure}" for measure in _measures(result)]
    rows = []
    for point in result["points"]:
        row = [_mib(point["budget"]), f"{point['bits_per_parameter']:.2f}", *_measured(result, point)]
        for other in result["compare"].values():
            row += _measured(result, next((p for p in other["points"] if p["budget"] == point["budget"]), None))
        rows.append(row)
    return header, rows


def _baselines(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    measures = _measures(result)
    header = ["", "MiB", "bits a parameter", *measures, *(f"ours: {m}" for m in measures), "ours is better by"]
    rows = [
        [
            label(point),
            _mib(point["resident_bytes"]),
            f"{point['bits_per_parameter']:.2f}",
            *_measured(result, point),
            *_measured(result, point["ours"]),
            _advantage(point, result["texts"][0]["name"]),
        ]
        for point in [{"name": "dense", "ours": None, "advantage": None} | result["dense"], *result["baselines"]]
    ]
    return header, rows


def _advantage(point: dict[str, Any], text: str) -> str:
    """By what share a baseline's perplexity is above ours; ∞ where only ours is finite."""
    if point["advantage"] is None:
        return ""
    share = point["advantage"][text]
    return "∞" if share is None else f"{100 * share:+.1f} %"


def _wins(result: dict[str, Any]) -> Iterator[str]:
    if not result["baselines"]:
        return
    compared = sum(len(point["advantage"] or {}) for point in result["baselines"])
    wins = result["baseline_wins"]
    yield f"A baseline has the lower perplexity in {len(wins)} of {compared} comparisons{':' if wins else '.'}"
    yield ""
    for win in wins:
        place = f"{label(win)}, {_mib(win['resident_bytes'])} MiB, {win['text']}"
        yield f"- {place}: {100 * win['lower_by']:.2f} % below ours"
    if wins:
        yield ""


def _tasks(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    tasks = sorted(result["zero_shot"]["tasks"])
    header = ["", *tasks, "mean", "mean, normalised"]
    named = [(f"{_mib(point['budget'])} MiB", point) for point in result["points"]]
    for name, other in result["compare"].items():
        named += [(f"`{name}` {_mib(point['budget'])} MiB", point) for point in other["points"]]
    if result["dense"]:
        named.append(("dense", result["dense"]))
    named += [(f"{label(point)}, {_mib(point['resident_bytes'])} MiB", point) for point in result["baselines"]]
    rows = []
    for title, point in named:
        measured = point["zero_shot"]
        values = [measured["tasks"][t]["acc"] for t in tasks] + [measured["average"], measured["average_norm"]]
        rows.append([title, *(f"{100 * value:.1f}" for value in values)])
    return header, rows


def _measures(result: dict[str, Any]) -> list[str]:
    names = [text["name"] for text in result["texts"]]
    heads = ["perplexity"] if len(names) == 1 else [f"perplexity, {name}" for name in names]
    return heads + (["zero-shot, %"] if result["zero_shot"] else [])


def _measured(result: dict[str, Any], point: dict[str, Any] | None) -> list[str]:
    """Empty where there is no point; ∞ where the perplexity is not finite, which JSON has as null."""
    if point is None:
        return [""] * len(_measures(result))
    values = [point["perplexity_by_text"][text["name"]] for text in result["texts"]]
    cells = ["∞" if value is None else number(value) for value in values]
    return cells + ([f"{100 * point['zero_shot']['average']:.1f}"] if result["zero_shot"] else [])


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
