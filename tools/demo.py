"""The demo: pack a real model, read it over HTTP at several budgets, and resize it while it runs.

    python -m bitstack.tools.demo --model MODEL --work DIR [--text FILE]

Needs no data and no network: the model calibrates on text that it writes itself, and perplexity is measured on
Python's own documentation, which every interpreter carries, unless ``--text`` names another text. It packs with less
text and fewer designs than the default recipe, so that two cores are done in minutes.
"""

import argparse
import json
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bsformat
from bitstack.fields import shown
from bitstack.progress import Advance
from bitstack.recipe import Recipe, recipe_settings
from bsformat import BstkError, format_size
from bsformat.errors import ModelError

from .console import number, printable, quiet_libraries, reporter, table
from .ending import ended
from .page import page
from .serve_ranges import RangeServer
from .values import size

if TYPE_CHECKING:
    from bitstack.text import Windows

BUDGETS: Final = ("60MiB", "80MiB", "120MiB")
PROMPT: Final = "What is the capital of France?"
NEW_TOKENS: Final = 24
WINDOWS: Final = 8
WINDOW: Final = 512
#: What is smaller than in the default recipe, which takes several times as long.
QUICK: Final = {
    "calib.tokens": 8192,
    "calib.gradient_tokens": 8192,
    "calib.window": 512,
    "decompose.linear.designs": ("s0.3 b3 s0.5 b2", "s1 b3 s0.5 b2"),
    "decompose.token.designs": ("b1 b1 b1 b1 b1 b1",),
    "tune.steps": 8,
    "eval.heldout_tokens": 2048,
}


class Steps:
    """Numbered headings, each followed by what was done and the seconds that it took."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step."""
        self.done += 1
        print(f"\n== {self.done}/{self.total} {title}", flush=True)
        started = time.monotonic()
        yield
        print(f"   {time.monotonic() - started:.1f} s", flush=True)


class Timed:
    """A `bitstack.progress.Reporter` that says after each stage how long it took; bars are drawn as elsewhere."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """See `bitstack.progress.Reporter.stage`."""
        started = time.monotonic()
        with reporter().stage(title, total, unit, done) as advance:
            yield advance
        print(f"{title}: {total:,} {unit}s in {time.monotonic() - started:.1f} s", flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of the demo."""
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="a Hugging Face directory or hub id, or a .gguf file")
    add("--work", required=True, type=Path, metavar="DIR", help="where the packed file goes; made if it is missing")
    add("--text", type=Path, metavar="FILE", help="measure perplexity on this text")
    add("--reuse", action="store_true", help="keep the packed file of an earlier run with the same model and recipe")
    add("--budgets", nargs=3, type=size, default=BUDGETS, metavar="SIZE", help="three budgets, in ascending order")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """All steps, and the table of what came out."""
    if args.text is not None and not args.text.is_file():
        raise ModelError("no such text; name a UTF-8 file", where=str(args.text), reason="text")
    import bitstack

    quiet_libraries()
    steps = Steps(7)
    args.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with steps.step("pack the model"):
        path = packed(args.model, args.work, reuse=args.reuse)
    with steps.step("inspect the file: only its head is read"), bsformat.open(path) as container:
        print(page(container))
    with steps.step("verify every byte of it"):
        with reporter().stage("verify", path.stat().st_size, "B") as advance:
            report = bsformat.verify(path, progress=advance)
        if report.problems:
            raise report.problems[0]
        print(f"OK root {report.root}, {report.n_blocks} blocks, {report.size} bytes checked")
    with bsformat.open(path) as container:
        windows = text_windows(bitstack.load_tokenizer(container), args.text, args.work)
    with RangeServer(path) as server:
        print(f"\nThe file is now served at {server.url}: everything from here on is read over HTTP.")
        rows = []
        for budget in args.budgets:
            with steps.step(f"load within {budget} from the URL"):
                rows.append(at_budget(server, report.root, budget, windows))
        with steps.step("resize one running model"):
            resize(server, report.root, args.budgets)
    print(f"\n== Summary: perplexity on {printable(windows.name)}, {windows.ids.numel():,} tokens")
    print(table(("budget", "resident", "read", "requests", "perplexity", "text"), rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"  {time.monotonic() - started:.0f} s in all, at most {format_size(peak)} of memory at any time")
    return 0


def packed(model: str, work: Path, *, reuse: bool) -> Path:
    """The packed file; made anew unless the one of an earlier run may be kept and is of the same model and recipe."""
    import bitstack

    recipe = Recipe().changed(QUICK)
    source = Path(model)
    stat = source.stat() if source.exists() else None
    stamp = {
        "model": str(source.resolve()) if stat else model,
        "size": stat.st_size if stat else None,
        "modified": stat.st_mtime_ns if stat else None,
        "recipe": recipe.to_json(),
        "writer": bitstack.__version__,
    }
    path, note = work / "model.bstk", work / "model.json"
    print("With less text and fewer designs to choose from than the default recipe, so that it takes minutes:")
    print(f"  {command(model, path)}")
    if reuse and path.is_file() and note.is_file() and json.loads(note.read_text()) == stamp:
        print(f"{path} of an earlier run is used again")
        return path
    note.unlink(missing_ok=True)
    made = bitstack.pack(model, path, recipe=recipe, report=Timed(), restart=not reuse)
    note.write_text(json.dumps(stamp, indent=2) + "\n")
    print(f"{made.path}: {format_size(made.size)}, root {made.root}")
    return path


def command(model: str, path: Path) -> str:
    """The command line that packs as the demo does."""
    flags = {setting.path: setting.flag for setting in recipe_settings()}
    words = [word for name, value in QUICK.items() for word in (flags[name], shown(value))]
    return shlex.join(["bstk", "pack", model, "-o", str(path), *words])


def text_windows(tokenizer: Any, text: Path | None, work: Path) -> "Windows":
    """Windows of the text to measure on: one that was named, or Python's documentation of its own language."""
    from bitstack.text import file_windows

    if text is None:
        from pydoc_data.topics import topics

        text = work / "python-documentation.txt"
        text.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return file_windows(tokenizer, text, WINDOW, WINDOWS, spread=True)


def at_budget(server: RangeServer, root: str, budget: str, windows: "Windows") -> tuple[str, ...]:
    """Load from the URL, measure, write a sentence: one row of the summary."""
    import bitstack

    with counted(server) as count, bsformat.open(server.url, root=root, cache=False) as container:
        with reporter().stage("load", container.plan(budget).resident_bytes, "B") as advance:
            model = bitstack.load(container, budget, progress=advance)
        tokenizer = model.bitstack.tokenizer()
        count(container)
        read, requests = container.source.bytes_read, container.source.requests
        resident = model.bitstack.resident_bytes
        print(f"read      {read:,} bytes in {requests} requests, by the loader's count and by the server's log")
        print(f"resident  {resident:,} bytes, {model.bitstack.plan.n_blocks} of {len(container)} blocks")
        with reporter().stage("measure", windows.ids.numel(), "token") as advance:
            value = bitstack.perplexity(model, windows, progress=advance)
        print(f"measured  perplexity {number(value)}")
        sentence = write(model, tokenizer)
        print(f"says      {sentence}")
    short = sentence if len(sentence) <= 40 else f"{sentence[:39]}…"
    return budget, format_size(resident), format_size(read), str(requests), number(value), short


def resize(server: RangeServer, root: str, budgets: Sequence[str]) -> None:
    """Grow one model from the first budget to the last and shrink it again.

    Raises:
        BstkError: it does not write the same text as before, or shrinking read something.
    """
    import bitstack

    low, high = budgets[0], budgets[-1]
    with counted(server) as count, bsformat.open(server.url, root=root, cache=False) as container:
        model = bitstack.load(container, low)
        tokenizer = model.bitstack.tokenizer()
        before = write(model, tokenizer)
        print(f"{low:>8}  resident {model.bitstack.resident_bytes:,} bytes; says {before}")
        for budget in (high, low):
            already = container.source.bytes_read
            model.bitstack.resize(budget)
            read = container.source.bytes_read - already
            print(f"{budget:>8}  resident {model.bitstack.resident_bytes:,} bytes; read {read:,} bytes")
        count(container)
        if read:
            raise BstkError(f"shrinking read {read} bytes, and should read none", reason="demo")
        after = write(model, tokenizer)
        if after != before:
            raise BstkError(f"after growing and shrinking the model says {after!r}, not {before!r}", reason="demo")
        print(f"{'':>8}  and says the same text as before it grew")


def write(model: Any, tokenizer: Any) -> str:
    """What the model answers to the prompt, greedily, as one line."""
    from .generate_command import complete

    text, _ = complete(model, tokenizer, PROMPT, NEW_TOKENS, raw=False, temperature=0.0, seed=0)
    return printable(" ".join(text.split()))


@contextmanager
def counted(server: RangeServer) -> Iterator[Any]:
    """Within it, a function that compares what a container read since the start with what the server sent.

    Raises:
        BstkError: the two do not agree.
    """
    requests, sent = server.requests, server.bytes_sent

    def compare(container: bsformat.Container) -> None:
        mine = (container.source.requests, container.source.bytes_read)
        theirs = (server.requests - requests, server.bytes_sent - sent)
        if mine != theirs:
            raise BstkError(
                f"the loader counts {mine[0]} requests and {mine[1]} bytes, the server {theirs[0]} and {theirs[1]}",
                where=server.url,
                reason="demo",
            )

    yield compare


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and give its exit code."""
    args = parse(argv)
    return ended(lambda: run(args), "demo")


if __name__ == "__main__":
    sys.exit(main())
