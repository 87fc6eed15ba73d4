"""The options of every command, and the values that they take. Imports nothing heavy."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any, Final

from bsformat import BstkError, parse_size
from bsformat.registry import FACTOR_DTYPES, MAX_RANK

#: Defaults of `bitstack.Recipe` and its options, repeated because asking it would import torch; a test compares them.
RECIPE: Final = {
    "calib_tokens": 8192,
    "window": 512,
    "heldout_tokens": 4096,
    "curve_points": 6,
    "seed": 0,
    "ranks": (8, 6, 4, 2, 2, 1, 1, 1),
    "token_ranks": (8, 8, 6, 4, 2, 2, 1, 1),
    "factors": "F8_E4M3",
    "stretch": 1.1,
}


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``low`` to ``high``, both included."""
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {span}")
        return value

    return parse


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number from 0."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def ranks(text: str) -> tuple[int, ...]:
    """Ranks of the levels: ``8,6,4,2``."""
    rank = whole(1, MAX_RANK)
    return tuple(rank(part.strip()) for part in text.split(","))


def size(text: str) -> str:
    """A size, checked and left as it was written: a percentage means nothing before the file is open."""
    if text != "auto":
        try:
            parse_size(text, 100)
        except BstkError as error:
            raise argparse.ArgumentTypeError(error.message) from None
    return text


def sizes(text: str) -> list[str]:
    """Several sizes, separated by commas."""
    return [size(part.strip()) for part in text.split(",")]


def root(text: str) -> str:
    """A root digest."""
    value = text.strip().lower()
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no root digest: 64 hexadecimal digits, as bstk inspect prints")
    return value


def storage_option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` for fsspec; the value is read as JSON if it is JSON, else it is text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def add_source(parser: argparse.ArgumentParser) -> None:
    """The file to read, and how."""
    parser.add_argument("uri", metavar="URI", help="the .bstk file")
    parser.add_argument("--root", metavar="HEX", type=root, help="the root digest that the file must have")
    parser.add_argument(
        "--storage-option",
        metavar="KEY=VALUE",
        dest="storage_options",
        type=storage_option,
        action="append",
        default=[],
        help="for fsspec, as endpoint_url=http://… for S3; may be repeated",
    )
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the model runs."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; default: cuda if there is one")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what the model computes in; default: bfloat16 on cuda, else float32",
    )


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk pack``."""
    add, default = parser.add_argument, RECIPE
    add("model", metavar="MODEL", help="a Hugging Face directory or hub id, or a .gguf file")
    add("-o", "--output", metavar="OUT.bstk", required=True, help="the file to write")
    add("--force", action="store_true", help="replace the output file if it exists")
    add("--calib", metavar="FILE", default="self", help="a text file, or self: text that the model writes (default)")
    add_json(parser)
    recipe = parser.add_argument_group("recipe")
    add = recipe.add_argument
    for name, low, meaning in (
        ("calib_tokens", 1, "tokens that the statistics are taken from"),
        ("window", 2, "tokens of one window of text"),
        ("heldout_tokens", 1, "tokens of other text that the quality curve is measured on"),
        ("curve_points", 1, "points of the quality curve"),
        ("seed", 0, "seed of everything random"),
    ):
        add(
            f"--{name.replace('_', '-')}",
            metavar="N",
            type=whole(low, 2**31 - 1),
            default=default[name],
            help=f"{meaning} (default: %(default)s)",
        )
    for name, of in (("ranks", "linear layers"), ("token_ranks", "embeddings and output heads")):
        shown = ",".join(map(str, RECIPE[name]))  # type: ignore[call-overload]
        add(
            f"--{name.replace('_', '-')}",
            metavar="K,K,…",
            type=ranks,
            default=default[name],
            help=f"rank of each level of the chains of {of} (default: {shown})",
        )
    add(
        "--factors",
        choices=sorted(FACTOR_DTYPES),
        default=default["factors"],
        help="element type of the factors (default: %(default)s)",
    )
    add(
        "--stretch",
        metavar="X",
        type=positive,
        default=default["stretch"],
        help="make the magnitudes larger by this (default: %(default)s)",
    )
    add("--no-walk", action="store_true", help="take each sign as it is, without pushing errors on (faster, worse)")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk inspect``."""
    add_source(parser)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk verify``."""
    add_source(parser)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk plan``."""
    add_source(parser)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--budget", metavar="SIZE", type=size, help="resident bytes of the weights")
    wanted.add_argument("--perplexity", metavar="P", type=positive, help="the perplexity to reach")
    parser.add_argument("--device", help="the device that --budget auto asks; default: cuda if there is one")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk generate``."""
    add_source(parser)
    add = parser.add_argument
    add("--budget", metavar="SIZE", type=size, default="auto", help="resident bytes of the weights (default: auto)")
    add("--prompt", metavar="TEXT", required=True, help="the text to continue, or the message to answer")
    add("--max-new-tokens", metavar="N", type=whole(1), default=64, help="tokens to write (default: %(default)s)")
    add("--raw", action="store_true", help="continue the prompt as it is, without the chat template of the tokenizer")
    add("--temperature", metavar="T", type=not_negative, default=0.0, help="above 0: sample (default: 0, greedy)")
    add("--seed", metavar="N", type=whole(0), default=0, help="seed of the sampling (default: %(default)s)")
    add_device(parser)
