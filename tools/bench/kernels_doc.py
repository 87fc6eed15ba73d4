"""The tables of docs/kernels.md: ``python -m bitstack.tools.bench.kernels_doc RESULT.json … -o docs/kernels.md``.

Takes what ``bitstack.tools.bench.kernels`` and ``bitstack.tools.bench.whole_model`` printed, and rewrites the part of
the page between its two markers. No number there is typed by hand.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitstack.tools.ending import ended
from bsformat.errors import ModelError

from .anchors import ANCHORS
from .markers import between, from_repository, rewrite, table
from .random_chains import KINDS

BEGIN = "<!-- made by bitstack.tools.bench.kernels_doc: begin -->"
END = "<!-- made by bitstack.tools.bench.kernels_doc: end -->"
#: From so many tokens on the ratio to cuBLAS is said too.
_PREFILL = 512
_FLOOR_BLOCKS = 4

_TIMES = "\N{MULTIPLICATION SIGN}"

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULT.json", nargs="+", help="what the measurements printed")
    parser.add_argument("-o", "--output", metavar="PAGE.md", required=True, help="the page, with its two markers")
    args = parser.parse_args(argv)

    def run() -> int:
        page = Path(args.output)
        rewrite(page, lambda old: rewritten(old, args.results, page))
        return 0

    return ended(run, "kernels_doc")


def rewritten(old: str, results: Sequence[str], page: Path) -> str:
    """The page with new tables.

    Raises:
        WriteError: it lacks a marker, or they are not in order. ModelError: a result cannot be read, or is none.
    """
    return between(old, BEGIN, END, lambda: "".join(_section(Path(path)) for path in results), page)


def _section(path: Path) -> str:
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"no JSON that can be read ({error})", where=str(path), reason="result") from None
    known: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {"rows": _kernels, "models": _models}
    kind = next((name for name in known if isinstance(result, dict) and name in result), None)
    if kind is None or not {"hardware", "versions", "method"} <= set(result):
        raise ModelError("is no result of bench.kernels or bench.whole_model", where=str(path), reason="result")
    machine = result["hardware"].get("gpu", result["hardware"]["cpu"])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    said = f"{machine}, {result['method']}; {versions}. Kept in `{from_repository(path)}`."
    return "\n".join([f"### {path.stem}", "", said, "", *known[kind](result)]) + "\n"


def _kernels(result: dict[str, Any]) -> Iterator[str]:
    rate = _rate(result)
    rows = [_with_floor(row, rate) for row in result["rows"]]
    yield (
        f"The floor is what the bytes take at {rate / 1e12:.2f} TB/s, the fastest that anything in the run read; "
        f"a copy reads and writes {result['copy_bandwidth'] / 1e12:.2f} TB/s. Microseconds, median."
    )
    yield ""
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        own = [row for row in rows if row["dtype"] == dtype and row["tokens"] == 1]
        if own:
            yield from [f"One token, {dtype}, by number of blocks:", "", *table(*_one_token(own)), ""]
    more = [row for row in rows if row["tokens"] > 1]
    for count in dict.fromkeys(row["blocks"] for row in more if row["blocks"]):
        own = [row for row in more if row["blocks"] in (0, count)]
        yield from [
            f"More tokens, {count} blocks; {_TIMES} is the ratio to cuBLAS:",
            "",
            *table(*_more_tokens(own)),
            "",
        ]
    chains = [row for row in rows if row["name"] in KINDS and "microseconds" in row]
    if chains:
        mean, most = (max(chains, key=lambda row, name=name: row[name]) for name in ("error_rms", "error_max"))  # type: ignore[misc]
        yield (
            f"Largest errors of chains against float64, relative to the root mean square of the result: "
            f"{mean['error_rms']:.2g} in the mean ({_place(mean)}), {most['error_max']:.2g} at most ({_place(most)})."
        )
        yield ""
    absent = [f"- {_place(row)}: {why}" for row in rows if (why := row.get("skipped") or row.get("refused"))]
    absent += [f"- {_place(row)}: the time was over" for row in result["left_out"]]
    if absent:
        yield from ["Not measured:", "", *absent, ""]


def _moved(row: Row) -> int:
    """Bytes that a product must read and write: W, x and y."""
    size = 4 if row["dtype"] == "float32" else 2
    return int(row["nbytes"] + (row["rows"] + row["columns"]) * row["tokens"] * size)


def _rate(result: dict[str, Any]) -> float:
    """Bytes a second of the fastest product of one token, or of a copy where that is faster."""
    measured = [row for row in result["rows"] if "microseconds" in row and row["tokens"] == 1]
    return float(max([result["copy_bandwidth"], *(1e6 * _moved(row) / row["microseconds"] for row in measured)]))


def _with_floor(row: Row, rate: float) -> Row:
    if "microseconds" not in row:
        return row
    floor = 1e6 * _moved(row) / rate
    return row | {"floor": floor, "floor_share": floor / row["microseconds"]}


def _place(row: Row) -> str:
    blocks = f", {row['blocks']} blocks" if row["blocks"] else ""
    return f"{row['name']}, {row['rows']}{_TIMES}{row['columns']}, tokens {row['tokens']}{blocks}, {row['dtype']}"


def _time(row: Row | None) -> str:
    return "" if row is None or "microseconds" not in row else f"{row['microseconds']:.1f}"


def _shapes(rows: Sequence[Row]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((row["rows"], row["columns"]) for row in rows))


def _one_token(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    counts = sorted({row["blocks"] for row in rows if row["blocks"]})
    anchors = [name for name in ANCHORS if any(row["name"] == name for row in rows)]
    share = _FLOOR_BLOCKS if _FLOOR_BLOCKS in counts else max(counts, default=0)
    floor = [f"floor, {share}", f"of the floor, {share}"] if counts else []
    header = [f"M{_TIMES}N, chain", *map(str, counts), *floor, *(f"`{name}`" for name in anchors)]
    lines = []
    for shape in _shapes(rows):
        here = {(row["name"], row["blocks"]): row for row in rows if (row["rows"], row["columns"]) == shape}
        for kind in [name for name in KINDS if any(name == own for own, _ in here)] or [""]:
            cells = [_time(here.get((kind, count))) for count in counts]
            if counts:
                row = here.get((kind, share), {})
                known = "microseconds" in row
                cells += [f"{row['floor']:.1f}", f"{100 * row['floor_share']:.0f} %"] if known else ["", ""]
            cells += [_time(here.get((name, 0))) for name in anchors]
            lines.append([f"{shape[0]}{_TIMES}{shape[1]}, {kind}".rstrip(", "), *cells])
    return header, lines


def _more_tokens(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    tokens = sorted({row["tokens"] for row in rows})
    lines = []
    for shape in _shapes(rows):
        here = {(row["name"], row["tokens"]): row for row in rows if (row["rows"], row["columns"]) == shape}
        for name in [name for name in (*KINDS, *ANCHORS) if any(name == own for own, _ in here)]:
            cells = []
            for number in tokens:
                text, base = _time(here.get((name, number))), here.get(("cublas", number), {}).get("microseconds")
                if text and base and number >= _PREFILL and name != "cublas":
                    text += f" ({_TIMES}{here[name, number]['microseconds'] / base:.2f})"
                cells.append(text)
            lines.append([f"{shape[0]}{_TIMES}{shape[1]}, {name}", *cells])
    return [f"M{_TIMES}N, chain; tokens:", *map(str, tokens)], lines


def _models(result: dict[str, Any]) -> Iterator[str]:
    header = ["", "resident GiB", "tokens a second", "ms a token", "peak GiB"]
    lines, resizes = [], []
    for row in result["models"]:
        title = f"packed, {row['budget'] / 2**30:.1f} GiB" if "budget" in row else row["variant"]
        if "failed" in row:
            lines.append([f"{title}: {row['failed']}", *[""] * 4])
            continue
        peak = row.get("peak_allocated_bytes")
        cells = [f"{row['tokens_per_second']:.1f}", f"{row['milliseconds']:.2f}"]
        cells.append("" if peak is None else f"{peak / 2**30:.2f}")
        lines.append([title, f"{row['resident_bytes'] / 2**30:.2f}", *cells])
        if "resize" in row:
            resizes.append((title, row["resize"]))
    yield f"A model of the shape `{result['model']}`, one sequence, one graph a token:"
    yield from ["", *table(header, lines), ""]
    for title, resize in resizes:
        good = resize["logits_changed"] and resize["as_a_new_graph"] and resize["back_as_before"]
        yield (
            f"Resizing from {title}: {resize['blocks']} blocks of {resize['tables']} tables, "
            f"{resize['bytes_more'] / 2**20:,.0f} MiB more, in {resize['grow_milliseconds']:.1f} ms, "
            f"{resize['grow_until_used_milliseconds']:.1f} ms until the first token that used them; back in "
            f"{resize['shrink_milliseconds']:.1f} and {resize['shrink_until_used_milliseconds']:.1f} ms. "
            "The captured graph "
            + ("gave the logits of a new one, and those of before again." if good else "did **not** survive it.")
        )
        yield ""


if __name__ == "__main__":
    sys.exit(main())
