"""``bstk eval``: a .bstk file resized from budget to budget, and what it competes with, all measured alike."""

import argparse
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bsformat
from bsformat import Container
from bsformat.errors import ModelError

from . import plot
from .console import print_json, quiet_libraries, reporter, say
from .loading import check_budgets, checked_reach
from .options import source_options

if TYPE_CHECKING:
    import torch

    from bitstack.loader import AutoBudget

    from .evaluation.baselines import Calibration
    from .evaluation.dense import Dense
    from .evaluation.yardstick import Yardstick


#: Tokens of one window where none are named.
WINDOW = 1024


def run(args: argparse.Namespace) -> int:
    """Measure, print a table or JSON, and draw the curves where that is asked for."""
    check(args)
    with ExitStack() as stack:

        def opened(uri: str, root: str | None = None) -> Container:
            return stack.enter_context(bsformat.open(uri, root=root, **source_options(args)))

        container = opened(args.uri, args.root)
        check_budgets(container, args.budgets)
        others = {name: opened(uri) for name, uri in args.compare}
        result = measure(args, container, others)
    if args.plot:
        plot.save_png(args.plot, result)
    if args.json:
        print_json(result)
    else:
        from .evaluation.report import report

        print(report(result))
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse at once what would fail after minutes or hours of work.

    Raises:
        BstkError: a file or a library is missing, or options do not go together.
    """
    if args.plot:
        plot.need_matplotlib()
    check_texts(args.texts)
    if args.zero_shot:
        from .evaluation.zero_shot import find_data, need_lm_eval

        need_lm_eval()
        find_data(args.zero_shot)
    names = [name for name, _ in args.compare]
    if len(set(names)) < len(names):
        raise ModelError("two files to --compare with have one name; rename one", reason="compare")
    if args.baselines:
        check_baselines(args)


def check_texts(paths: list[str]) -> None:
    """See `check`."""
    names: set[str] = set()
    for path in paths:
        if not os.path.isfile(path):
            raise ModelError("no such text; name a UTF-8 file", where=path, reason="text")
        if os.path.basename(path) in names:
            raise ModelError(
                "another text has the same name, and results go by it; rename one", where=path, reason="text"
            )
        names.add(os.path.basename(path))


def check_baselines(args: argparse.Namespace) -> None:
    """See `check`."""
    from .evaluation.baselines import BASELINES

    if args.dense is None:
        raise ModelError("--baselines quantise the dense model: name it with --dense MODEL", reason="baseline")
    for name in args.baselines:
        BASELINES[name].check()
    if args.calib != "self" and any(BASELINES[name].calibrated for name in args.baselines):
        if not os.path.isfile(args.calib):
            raise ModelError("no such calibration text; name a file, or self", where=args.calib, reason="text")
        if any(os.path.samefile(args.calib, path) for path in args.texts):
            raise ModelError("is measured on, so nothing may be calibrated on it", where=args.calib, reason="text")


def measure(args: argparse.Namespace, container: Container, others: dict[str, Container]) -> dict[str, Any]:
    """Everything that was asked for, as the JSON of the command."""
    import bitstack
    from bitstack.loader import resolve_budget

    from .devices import default_dtype, find_device, find_dtype, hardware, use_kernels, versions
    from .evaluation.compare import baseline_wins, put_beside
    from .evaluation.packed import measure_packed
    from .evaluation.yardstick import Text, Yardstick

    quiet_libraries()
    device = find_device(args.device)
    use_kernels(args.kernels, device)
    dtype = find_dtype(args.dtype) or default_dtype(device)
    window = checked_reach(container, "--window", args.window, WINDOW) or WINDOW
    decided = automatic(args, container, window, device, dtype)
    # By their bytes, as they were written: a percentage counts blocks, whatever type they are computed in.
    budgets: dict[int, str | int] = {}
    for budget in args.budgets:
        size = decided.budget if decided and budget == "auto" else resolve_budget(budget, container, device)
        budgets[size] = size if budget == "auto" else budget
    tokenizer = bitstack.load_tokenizer(container)
    texts = [Text.read(tokenizer, path, window, args.windows) for path in args.texts]
    yardstick = Yardstick(texts, tokenizer, _zero_shot(args, tokenizer))
    rivals = measure_rivals(args, container, yardstick, device, dtype)
    # Where baselines are, ours is measured too: one model grows through all of these sizes.
    sizes = {point["resident_bytes"]: point["resident_bytes"] for point in rivals.baselines} | budgets
    ours = measure_packed(container, sizes, yardstick, device, dtype)
    beside = put_beside(rivals.baselines, ours)
    return {
        "file": container.uri,
        "root": container.root,
        "model": _model_name(container),
        "text": texts[0].record,
        "texts": [text.record for text in texts],
        "dtype": str(dtype).removeprefix("torch."),
        "auto": decided.to_json() if decided else None,
        "zero_shot": yardstick.zero_shot.record if yardstick.zero_shot else None,
        "points": [ours[size] for size in sorted(budgets)],
        "compare": {
            name: {
                "file": other.uri,
                "root": other.root,
                "points": list(
                    measure_packed(other, {size: size for size in budgets}, yardstick, device, dtype).values()
                ),
            }
            for name, other in others.items()
        },
        "dense": rivals.dense,
        "calibration": rivals.calibration,
        "baselines": beside,
        "baseline_wins": baseline_wins(beside),
        "skipped": rivals.skipped,
        "hardware": hardware(device),
        "versions": versions() | rivals.libraries,
    }


def automatic(
    args: argparse.Namespace, container: Container, window: int, device: "torch.device", dtype: Any
) -> "AutoBudget | None":
    """What ``auto`` comes to, if it is among the budgets, with room for what goes through the model at once."""
    if "auto" not in args.budgets:
        return None
    from bitstack.automatic import plan_auto
    from bitstack.evaluation import BATCH_TOKENS
    from bitstack.needs import Use

    batch = max(1, BATCH_TOKENS // window, args.batch_size if args.zero_shot else 1)
    decided, _ = plan_auto(container, device, dtype, Use(window, batch, logits="all", cached=False))
    say(decided)
    return decided


@dataclass(slots=True)
class Rivals:
    """What was measured beside the file.

    Attributes:
        dense: the point of the dense model, if there is one.
        baselines, skipped: points, and what could not be measured, with the reason.
        calibration: the text that baselines looked at, if any did.
        libraries: versions by name.
    """

    dense: dict[str, Any] | None = None
    baselines: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    libraries: dict[str, str] = field(default_factory=dict)


def measure_rivals(
    args: argparse.Namespace, container: Container, yardstick: "Yardstick", device: "torch.device", dtype: Any
) -> Rivals:
    """Measure the dense model and the baselines; none of them stays in memory."""
    if args.dense is None:
        return Rivals()
    from bitstack.checkpoint import open_checkpoint

    from .evaluation.baselines import BASELINES
    from .evaluation.dense import Dense
    from .evaluation.runner import measure_baselines, measure_dense, settings_for

    dense = Dense(open_checkpoint(args.dense), device, dtype)
    dense.check_is(container)
    chosen = [BASELINES[name] for name in args.baselines]
    out = Rivals(libraries={name: version for baseline in chosen for name, version in baseline.check().items()})
    out.dense = measure_dense(dense, yardstick)
    settings = settings_for(args.bits, args.group_size, args.embeddings)
    calibration = calibration_for(args, dense)
    out.baselines, out.skipped = measure_baselines(dense, chosen, settings, calibration, yardstick)
    out.calibration = calibration.record
    return out


def calibration_for(args: argparse.Namespace, dense: "Dense") -> "Calibration":
    """Windows of the text that was named, or of text that the dense model writes."""
    from bitstack.text import Windows, file_windows, self_windows

    from .evaluation.baselines import Calibration

    window, count = args.calib_window, max(1, args.calib_tokens // args.calib_window)

    def make() -> Windows:
        if args.calib != "self":
            return file_windows(dense.tokenizer, args.calib, window, count, spread=True)
        with reporter().stage("write calibration text", count * window, "token") as advance:
            return self_windows(dense.model, dense.tokenizer, window, count, seed=0, progress=advance)

    return Calibration(make)


def _zero_shot(args: argparse.Namespace, tokenizer: Any) -> Any:
    if not args.zero_shot:
        return None
    from .evaluation.zero_shot import ZeroShot

    return ZeroShot(tokenizer, args.zero_shot, limit=args.limit, batch_size=args.batch_size)


def _model_name(container: Container) -> str:
    model = container.metadata.extra.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return str(name or os.path.basename(container.uri))
