"""``bstk plan``: what a budget buys, or what a perplexity costs."""

import argparse
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import bsformat
from bsformat import BstkError, Container, Plan, format_size

from . import summary
from .console import exact_size, number, print_json, printable, quiet_libraries
from .curve import Point
from .options import source_options
from .page import field

if TYPE_CHECKING:
    from bitstack.loader import AutoBudget


def run(args: argparse.Namespace) -> int:
    """Print the plan, as text or JSON."""
    with bsformat.open(args.uri, root=args.root, **source_options(args)) as container:
        decided = None
        if args.perplexity is not None:
            plan = prefix_for(container, args.perplexity)
            asked = f"perplexity {args.perplexity:g}"
        elif args.budget == "auto":
            decided, plan = automatic(container, args)
            asked = "auto"
        else:
            plan = container.plan(args.budget)
            asked = args.budget
        out = describe(container, plan, asked)
        if args.json:
            print_json(out | {"auto": decided.to_json() if decided else None})
        else:
            if decided:
                print(decided)
            print(text(container, plan, out, args.perplexity))
    return 0


def automatic(container: Container, args: argparse.Namespace) -> tuple["AutoBudget", Plan]:
    """What ``auto`` comes to, and what it buys; of a file without a model of transformers nothing but blocks is known.

    Raises:
        BudgetError: it is below the minimum.
    """
    from bitstack.automatic import plan_auto
    from bitstack.loader import auto_budget
    from bitstack.needs import Use

    from .devices import default_dtype, find_device, find_dtype

    quiet_libraries()
    device = find_device(args.device)
    if any(item.name == "config.json" for item in container.metadata.attachments):
        dtype = find_dtype(args.dtype) or default_dtype(device)
        return plan_auto(container, device, dtype, Use(args.context, args.batch))
    least, most = container.minimum_bytes, container.total_bytes
    decided = auto_budget(device, None, least=least, most=most, where=container.uri)
    return decided, container.plan(decided.budget)


def prefix_for(container: Container, perplexity: float) -> Plan:
    """The smallest prefix from the first measured point on that is expected to reach a perplexity.

    What is asked for above the whole curve is answered with its first point: smaller prefixes were not measured.

    Raises:
        BstkError: the file has no curve, or its curve does not reach so far.
    """
    curve = summary.quality_curve(container)
    best = curve.best
    if best is None:
        raise BstkError(
            "holds no measured perplexity curve: name a --budget, or measure with bstk eval",
            where=container.uri,
            reason="curve-missing",
        )
    wanted = curve.reach(perplexity)
    if wanted is None:
        record = summary.perplexity_record(container)
        bound = record is not None and perplexity < record.dense
        raise BstkError(
            f"its curve does not reach perplexity {perplexity:g}: the best measured value is {number(best.value, 5)}, "
            f"with {exact_size(best.resident)}"
            + (f"; even the dense model has {number(record.dense, 5)}" if record and bound else ""),
            where=container.uri,
            reason="curve-out-of-reach",
        )
    counts = range(container.available_blocks + 1)
    return container.planner.prefix(bisect_left(counts, wanted, key=container.planner.resident_bytes))


def describe(container: Container, plan: Plan, asked: str) -> dict[str, Any]:
    """The plan as plain values."""
    out = {"file": container.uri, "root": container.root} | summary.fit(container, plan, asked)
    del out["budget"]
    return {"asked": asked, **out, "measured": _measured(container, plan), "next_block": _next(container, plan)}


def _next(container: Container, plan: Plan) -> dict[str, Any] | None:
    if plan.next_bytes is None:
        return None
    block = container.block(plan.n_blocks)
    return {
        "tensor": block.tensor.name,
        "level": block.level,
        "resident_bytes": plan.next_bytes,
        "missing_bytes": plan.next_bytes - plan.budget,
    }


def text(container: Container, plan: Plan, out: dict[str, Any], perplexity: float | None = None) -> str:
    """The plan for people; ``perplexity`` is what was asked for, if it was that."""
    head = container.superblock.head_length
    following = out["next_block"]
    lines = [
        f"{printable(container.uri)}: {out['asked']}, that is {exact_size(plan.budget)}",
        field("blocks", f"{plan.n_blocks:,} of {len(container):,}"),
        field("resident", f"{exact_size(plan.resident_bytes)}, {out['bits_per_parameter']:.2f} bits per parameter"),
        field(
            "to read",
            f"{exact_size(out['download_bytes'])}: the head, {format_size(head)}, and one range, "
            f"{format_size(plan.length)}",
        ),
        field(
            "next block",
            "none: these are all"
            if following is None
            else f"needs {exact_size(following['resident_bytes'])}: level {following['level']} of "
            f"{printable(following['tensor'])}",
        ),
        field("levels held", ", ".join(f"{n} by {count:,}" for n, count in out["levels"].items()) + " chains"),
        *_expectation(container, plan, perplexity),
    ]
    return "\n".join(lines)


def _expectation(container: Container, plan: Plan, asked: float | None) -> list[str]:
    """The perplexity to expect, and what was measured around it."""
    record, curve = summary.perplexity_record(container), summary.quality_curve(container)
    if record is None or not curve:
        return [field("perplexity", "not known: the file holds no curve")]
    source = f"measured on {printable(record.text)}"
    value = curve.at(plan.resident_bytes)
    first, last = curve.points[0], curve.points[-1]
    if value is None:
        span = f"from {format_size(first.resident)} to {format_size(last.resident)}"
        return [field("perplexity", f"not known: the file's curve, {source}, goes {span}")]
    lines = [f"about {number(value)}, an estimate from the file's curve; dense {number(record.dense)}"]
    below, above = curve.around(plan.resident_bytes)
    if below is not None and below == above:
        lines = [f"{number(value)}, {source}; dense {number(record.dense)}"]
    elif below is not None and above is not None:
        lines.append(f"between {_point(below)} and {_point(above)}, {source}")
    if asked is not None and asked > first.value:
        lines.append("the curve begins here: fewer bytes may be enough, but were not measured")
    return [field("" if i else "perplexity", line) for i, line in enumerate(lines)]


def _point(point: Point) -> str:
    return f"{number(point.value)} at {format_size(point.resident)}"


def _measured(container: Container, plan: Plan) -> list[dict[str, Any]]:
    """The measured points that an estimate lies between; one where a point itself is meant, none outside the curve."""
    points = summary.quality_curve(container).around(plan.resident_bytes)
    return [
        {"resident_bytes": p.resident, "perplexity": p.value} for p in dict.fromkeys(points) if p and None not in points
    ]
