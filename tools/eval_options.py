"""The options of ``bstk eval``. Imports nothing heavy."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from .options import add_device, add_kernels, add_source
from .values import sizes, whole

#: Names of `bitstack.tools.evaluation.baselines.BASELINES`, repeated because asking it would import torch; a test
#: compares them.
BASELINES: Final = ("rtn", "rtn-symmetric", "gptq", "awq", "hqq")


def each(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A type for argparse: several values of one kind, separated by commas, each once."""
    return lambda text: list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))


def chosen(names: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: some of the names, separated by commas."""

    def one(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return each(one)


def embedding_bits(text: str) -> int | str:
    """From 2 to 8, 16, or ``same``."""
    return text if text == "same" else 16 if text == "16" else whole(2, 8)(text)


def named(text: str) -> tuple[str, str]:
    """``NAME=URI``."""
    name, equals, uri = text.partition("=")
    if not name or not equals or not uri:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URI")
    return name, uri


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk eval``."""
    add_source(parser)
    add = parser.add_argument
    add(
        "--text",
        metavar="FILE",
        dest="texts",
        action="append",
        required=True,
        help="a text to measure on, UTF-8; may be repeated",
    )
    add("--budgets", metavar="SIZE,SIZE,…", type=sizes, required=True, help="resident bytes of the weights")
    add(
        "--window",
        metavar="N",
        type=whole(2),
        help="tokens of one window (default: 1024, or what the model can read, if that is less)",
    )
    add("--windows", metavar="N", type=whole(1), help="only the first N windows of each text (default: all)")
    add("--plot", metavar="PNG", type=os.fspath, help="draw the curves into this file (needs matplotlib)")
    add_device(parser)
    add_kernels(parser)
    tasks = parser.add_argument_group("zero-shot accuracy", "needs lm-eval: pip install 'bitstack[eval]'")
    add = tasks.add_argument
    add(
        "--zero-shot",
        metavar="DIR",
        type=os.fspath,
        help="run ARC, HellaSwag, LAMBADA, PIQA and WinoGrande on files of JSON lines in this folder",
    )
    add("--limit", metavar="N", type=whole(1), help="only the first N questions of each task (default: all)")
    add("--batch-size", metavar="N", type=whole(1), default=16, help="questions at once (default: %(default)s)")
    others = parser.add_argument_group("to compare with", "measured in the same run, on the same windows and tasks")
    add = others.add_argument
    add(
        "--compare",
        metavar="NAME=URI",
        type=named,
        action="append",
        default=[],
        help="another .bstk file, at the same budgets; may be repeated",
    )
    add("--dense", metavar="MODEL", help="the dense model: a Hugging Face directory or hub id, or a .gguf file")
    add(
        "--baselines",
        metavar="NAME,NAME,…",
        type=chosen(BASELINES),
        default=[],
        help=f"ways to quantise the dense model, of {', '.join(BASELINES)}",
    )
    add("--bits", metavar="N,N,…", type=each(whole(2, 8)), default=[2, 3, 4, 5, 6, 8], help="their code widths, 2 to 8")
    add(
        "--group-size", metavar="N", type=whole(1), default=64, help="weights that share a scale (default: %(default)s)"
    )
    add(
        "--embeddings",
        metavar="N,N,…",
        type=each(embedding_bits),
        default=[16, "same"],
        help="their code widths for embeddings and output heads: 2 to 8, same, or 16: left alone (default: 16,same)",
    )
    add(
        "--calib",
        metavar="FILE",
        default="self",
        help="text for those that calibrate, or self: as in bstk pack (default)",
    )
    add("--calib-tokens", metavar="N", type=whole(1), default=32768, help="how much of it (default: %(default)s)")
    add("--calib-window", metavar="N", type=whole(2), default=512, help="tokens of one window (default: %(default)s)")
