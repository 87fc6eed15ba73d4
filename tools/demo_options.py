"""The options of ``bstk demo``. Imports nothing heavy."""

import argparse

from .options import add_device, add_kernels, add_source
from .values import exact, text, whole


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk demo``."""
    add_source(parser)
    add = parser.add_argument
    add("--budget", metavar="SIZE", type=exact, help="of the left side at first (default: the smallest useful prefix)")
    add("--against", metavar="SIZE", type=exact, help="of the right side (default: the most there is room for)")
    add("--ceiling", metavar="SIZE", type=exact, help="the right end of both sliders (default: what there is room for)")
    add(
        "--models",
        choices=("auto", "one", "two"),
        default="auto",
        help="two models write at the same time; one is resized from side to side (default: two if memory allows)",
    )
    add("--prompt", metavar="TEXT", type=text, default="Why is the sky blue?", help="in the field for it at first")
    add("--max-new-tokens", metavar="N", type=whole(1), default=96, help="tokens to write (default: %(default)s)")
    add("--raw", action="store_true", help="continue the prompt as it is, without the chat template of the tokenizer")
    add("--host", default="127.0.0.1", help="address to listen on; other than loopback, a token is asked for")
    add("--port", metavar="N", type=whole(0, 65535), default=7860, help="0: a free one (default: %(default)s)")
    add(
        "--context",
        metavar="N",
        type=whole(1),
        help="tokens of a prompt and its text that there is room for (default: 4096, or what the model can read, if "
        "that is less)",
    )
    add_device(parser)
    add_kernels(parser)
