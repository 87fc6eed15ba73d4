"""``bstk eval``: one model, resized from budget to budget, measured at each."""

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

import blake3

import bsformat
from bsformat import Container, format_size
from bsformat.errors import ModelError

from . import plot, summary
from .console import number, print_json, printable, quiet_libraries, reporter, table
from .generate_command import check_budgets, load_with_bar

if TYPE_CHECKING:
    from bitstack.text import Windows


def run(args: argparse.Namespace) -> int:
    """Print perplexity at each budget, as a table or JSON; draw it where that is asked for."""
    if args.plot:
        plot.need_matplotlib()
    if not os.path.isfile(args.text):
        raise ModelError("no such text; name a UTF-8 file", where=args.text, reason="text")
    with bsformat.open(args.uri, root=args.root, **dict(args.storage_options)) as container:
        check_budgets(container, args.budgets)
        import bitstack
        from bitstack.loader import resolve_budget
        from bitstack.text import file_windows

        from .devices import find_device, find_dtype, hardware, versions

        quiet_libraries()
        device = find_device(args.device)
        # By their bytes, as they were written: a percentage counts blocks, whatever type they are computed in.
        budgets = {resolve_budget(b, container, device): b for b in args.budgets}
        windows = file_windows(bitstack.load_tokenizer(container), args.text, args.window, args.windows)
        points = measure(container, budgets, windows, device, find_dtype(args.dtype))
        out: dict[str, Any] = {
            "file": container.uri,
            "root": container.root,
            "text": _text(args.text, windows),
            "points": points,
            "hardware": hardware(device),
            "versions": versions(),
        }
        name = printable(_model_name(container))
    if args.plot:
        plot.save_png(args.plot, points, f"{name} on {out['text']['name']}")
    if args.json:
        print_json(out)
    else:
        print(report(out))
    return 0


def measure(
    container: Container, budgets: dict[int, str], windows: "Windows", device: Any, dtype: Any
) -> list[dict[str, Any]]:
    """Perplexity at each budget (bytes -> as written), in ascending order: the model only ever grows.

    Of a masked language model, or one from sequence to sequence, it is that of what it is asked for
    (`bitstack.task`), masks with seed 0.
    """
    from bitstack import perplexity
    from bitstack.task import prepare, task_of

    points = []
    model: Any = None
    for size, budget in sorted(budgets.items()):
        before = container.source.bytes_read
        if model is None:
            model = load_with_bar(container, budget, device, dtype)
            windows = prepare(windows, task_of(model.config), model, model.bitstack.tokenizer(), seed=0)
        else:
            added = container.plan(size).resident_bytes - model.bitstack.plan.resident_bytes
            with reporter().stage("load", max(added, 0), "B") as advance:
                model.bitstack.resize(budget, advance)
        started = time.monotonic()
        with reporter().stage(f"measure {format_size(size)}", windows.ids.numel(), "token") as advance:
            value = perplexity(model, windows, progress=advance)
        points.append(
            {
                "budget": size,
                "resident_bytes": model.bitstack.resident_bytes,
                "n_blocks": model.bitstack.plan.n_blocks,
                "bits_per_parameter": summary.bits_per_parameter(container, model.bitstack.resident_bytes),
                "perplexity": value,
                "bytes_read": container.source.bytes_read - before,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    return points


def _text(path: str, windows: "Windows") -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = blake3.blake3(file.read()).hexdigest()
    return {
        "name": windows.name,
        "blake3": digest,
        "window": windows.ids.shape[1],
        "windows": len(windows),
        "tokens": windows.ids.numel(),
    }


def _model_name(container: Container) -> str:
    model = container.metadata.extra.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return str(name or os.path.basename(container.uri))


def report(out: dict[str, Any]) -> str:
    """The table for people, with what it was measured on and with."""
    text, machine, software = out["text"], out["hardware"], out["versions"]
    rows = [
        (
            format_size(p["budget"]),
            format_size(p["resident_bytes"]),
            f"{p['n_blocks']:,}",
            f"{p['bits_per_parameter']:.2f}",
            number(p["perplexity"]),
        )
        for p in out["points"]
    ]
    return "\n".join(
        [
            f"{printable(out['file'])} on {printable(text['name'])}, "
            f"{text['windows']:,} windows of {text['window']} tokens",
            table(("budget", "resident", "blocks", "bits/param", "perplexity"), rows),
            f"  {machine.get('gpu', machine['cpu'])}, {machine['threads']} threads; "
            + ", ".join(f"{name} {version}" for name, version in software.items()),
        ]
    )
