"""``bstk init-repo``: a directory that transformers loads and the hub shows."""

import argparse
import os

from bitstack.progress import so_far
from bitstack.repository import model_name, write_repository
from bsformat import Container

from .card import card
from .console import exact_size, print_json, reporter
from .options import source_options


def run(args: argparse.Namespace) -> int:
    """Write the directory, and say what is in it."""
    repository = args.repo_id or os.path.basename(os.path.abspath(args.output))

    def text(container: Container) -> str:
        title = args.title or model_name(container) or repository
        return card(container, title=title, license_id=args.license, base_model=args.base_model, repository=repository)

    with so_far(reporter(), "copy") as progress:
        fetched = write_repository(
            args.uri,
            args.output,
            budget=args.budget,
            card=text,
            progress=progress,
            root=args.root,
            **source_options(args),
        )
    if args.json:
        print_json(fetched.to_json() | {"folder": args.output, "files": sorted(os.listdir(args.output))})
        return 0
    part = "all" if fetched.whole else f"{fetched.n_blocks:,} of {fetched.total_blocks:,}"
    print(f"{args.output}  {', '.join(sorted(os.listdir(args.output)))}")
    print(f"blocks  {part}, {exact_size(fetched.size)}")
    print(f"root    {fetched.root}")
    if not args.license:
        print("The card says that the licence is unknown: name it with --license.")
    return 0
