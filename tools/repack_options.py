"""The options of ``bstk repack``. Imports nothing heavy."""

import argparse

from bsformat.arrange import ORDERS
from bsformat.copying import CODECS

from .options import add_source, add_volume_size
from .values import exact, whole


def add_repack(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk repack``."""
    add_source(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="OUT.bstk", required=True, help="the file to write")
    add("--force", action="store_true", help="replace the output file if it exists; it may be the input")
    add(
        "--order",
        choices=ORDERS,
        help="file: as it is; worth: by worth per byte; average: level by level, by worth within a level "
        "(default: file, or worth with --losses)",
    )
    add(
        "--losses",
        metavar="FILE.json",
        help="what the worth of the blocks follows from: an object with, for each packed tensor, a list for each of "
        "its row groups of the loss with 0, 1, 2, … and all of its levels",
    )
    add("--levels", metavar="N", type=whole(0), help="keep at most N levels of each chain")
    add("--budget", metavar="SIZE", type=exact, help="of the new order keep the blocks that these resident bytes buy")
    add(
        "--codec",
        choices=CODECS,
        default="keep",
        help="how blocks are stored; zstd: where it saves a sixteenth (default: %(default)s)",
    )
    add_volume_size(parser)
    parser.epilog = (
        "What the blocks hold stays as it is. The new file has a root of its own and names the one it was made of.\n"
        "Of the quality curve those points stay whose prefix has the same blocks as before.\n"
        f"{parser.epilog or ''}"
    )
