"""``bstk fetch``: a local file of the prefix that a budget buys."""

import argparse

import bsformat
from bitstack.progress import so_far
from bsformat import Fetched

from .console import exact_size, print_json, reporter
from .options import source_options


def run(args: argparse.Namespace) -> int:
    """Fetch, and print what is there now."""
    with so_far(reporter(), "fetch") as progress:
        fetched = bsformat.fetch(
            args.uri, args.output, args.budget, root=args.root, progress=progress, **source_options(args)
        )
    if args.json:
        print_json(fetched.to_json())
    else:
        print(text(fetched))
    return 0


def text(fetched: Fetched) -> str:
    """What a person wants to know of it."""
    part = "the whole file" if fetched.whole else "a prefix"
    lines = [
        f"{fetched.path}  {part}: {fetched.n_blocks} of {fetched.total_blocks} blocks, {exact_size(fetched.size)}"
        + ("" if fetched.whole else f" of {fetched.file_length:,}"),
        f"root    {fetched.root}",
        f"read    {fetched.bytes_read:,} bytes in {fetched.requests} requests",
    ]
    if fetched.bytes_local or fetched.bytes_cached:
        lines.append(f"reused  {fetched.bytes_local:,} bytes of local files, {fetched.bytes_cached:,} of the cache")
    return "\n".join(lines)
