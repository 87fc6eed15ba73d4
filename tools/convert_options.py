"""The options of ``bstk convert``. Imports nothing heavy."""

import argparse

from .options import add_json

#: What can be converted.
FORMATS = ("bitstack",)
ORDERS = ("published", "worth", "average")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk convert``."""
    add = parser.add_argument
    add(
        "format", metavar="FORMAT", choices=FORMATS, help="bitstack: a checkpoint as the authors of BitStack publish it"
    )
    add("folder", metavar="DIR", help="its directory: config.json, tokenizer, *.safetensors, compression_config.json")
    add("-o", "--output", metavar="OUT.bstk", required=True, help="the file to write")
    add("--force", action="store_true", help="replace the output file if it exists")
    add(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="published: that of compression_config.json; worth: by worth per byte; average: level by level, by worth "
        "within a level (default: %(default)s)",
    )
    add_json(parser)
    parser.epilog = (
        "Signs and factors stay as they are, bit by bit. The worth of a level is the share of the squared error of\n"
        "its layer's output that it removes, per byte; bstk repack orders by losses of your own (--losses).\n"
        "What was not decomposed (embeddings, norms, head) is stored as it is, and is part of every budget."
    )
