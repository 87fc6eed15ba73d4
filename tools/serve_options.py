"""The options of ``bstk serve``. Imports nothing heavy."""

import argparse

from .options import add_device, add_governor, add_kernels, add_source
from .values import memory, not_negative, size, whole

#: Where the server listens if nobody says otherwise: this machine alone reaches it.
HOST, PORT = "127.0.0.1", 8000


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk serve``."""
    add_source(parser)
    add = parser.add_argument
    add("--budget", metavar="SIZE", type=size, default="auto", help="resident bytes of the weights (default: auto)")
    add(
        "--progressive",
        action="store_true",
        help="answer with the smallest useful prefix, while the rest of the budget streams in behind it",
    )
    add("--name", metavar="NAME", help="of the model, in requests (default: the name of the file without .bstk)")
    add_device(parser)
    add_kernels(parser)
    add_governor(parser)
    add = parser.add_argument_group("who may ask").add_argument
    add("--host", default=HOST, help="the address to listen on (default: %(default)s); others need a token")
    add("--port", metavar="N", type=whole(0, 65535), default=PORT, help="0: any free one (default: %(default)s)")
    add("--token", metavar="TEXT", help="what clients must send as their API key (better: $BSTK_TOKEN, which ps hides)")
    add = parser.add_argument_group("how much it takes on").add_argument
    add(
        "--parallel",
        metavar="N",
        type=whole(1, 1024),
        default=8,
        help="answers that are written at once, in turns (default: %(default)s); each has a cache of --context tokens",
    )
    add("--queue", metavar="N", type=whole(0, 65536), default=64, help="requests that wait (default: %(default)s)")
    add(
        "--context",
        metavar="N",
        type=whole(1),
        help="tokens of a prompt and its answer (default: 4096, or what the model can read, if that is less)",
    )
    add(
        "--prompt-chunk",
        metavar="N",
        type=whole(1),
        default=256,
        help="tokens of a prompt in one turn (default: %(default)s): more are faster, and hold the others up longer",
    )
    add("--max-body", metavar="SIZE", type=memory, default=4 << 20, help="bytes of a request (default: 4MiB)")
    add(
        "--grace",
        metavar="SECONDS",
        type=not_negative,
        default=30.0,
        help="for what is being answered, when the server is told to stop (default: %(default)g)",
    )
    parser.epilog = (
        "$BSTK_TOKEN, or --token, is what clients must send. After SIGTERM or Ctrl-C nothing new is answered,\n"
        "and what is being answered has --grace to end; a second one ends it at once. docs/serving.md says more.\n\n"
        f"{parser.epilog or ''}"
    )
