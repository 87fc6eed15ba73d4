"""``bstk inspect``."""

import argparse

import bsformat

from .console import print_json
from .options import source_options
from .page import page
from .summary import describe


def run(args: argparse.Namespace) -> int:
    """Print the page, or JSON."""
    with bsformat.open(args.uri, root=args.root, **source_options(args)) as container:
        if args.json:
            print_json(describe(container))
        else:
            print(page(container))
    return 0
