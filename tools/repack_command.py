"""``bstk repack``: the blocks of a file in another one."""

import argparse
import json
import os
from typing import Any

import bsformat
from bitstack.progress import so_far
from bsformat import Repacked
from bsformat.cutting import volume_name
from bsformat.errors import RepackError

from .console import exact_size, print_json, printable, reporter
from .options import source_options
from .output import check_output


def run(args: argparse.Namespace) -> int:
    """Repack, and say what came out of it.

    Raises:
        WriteError: the output exists, or cannot be written. RepackError and others: see `bsformat.repack`.
    """
    check_output(args.output, force=args.force)
    with so_far(reporter(), "repack") as progress:
        made = bsformat.repack(
            args.uri,
            args.output,
            order=args.order,
            losses=None if args.losses is None else read_losses(args.losses),
            levels=args.levels,
            budget=args.budget,
            codec=args.codec,
            volume_size=args.volume_size,
            root=args.root,
            progress=progress,
            **source_options(args),
        )
    if args.json:
        print_json(made.to_json())
    else:
        print(text(made))
    return 0


def text(made: Repacked) -> str:
    """What a person wants to know of it."""
    lines = [
        f"{made.path}  {made.n_blocks} of {made.source_blocks} blocks, {exact_size(made.size)}",
        f"root    {made.root}",
        f"made of {made.source_root}  {printable(made.uri)}",
        f"holds   {exact_size(made.total_bytes)} when all of it is resident",
        f"read    {made.bytes_read:,} bytes in {made.requests} requests",
    ]
    if made.n_volumes > 1:
        lines.append(f"volumes {made.n_volumes}, up to {volume_name(made.path, made.n_volumes)}")
    if made.source_curve_points:
        lost = made.source_curve_points - made.curve_points
        lines.append(
            f"curve   {made.curve_points} of {made.source_curve_points} points still hold"
            + ("; bstk eval measures the new order" if lost else "")
        )
    return "\n".join(lines)


def read_losses(path: str) -> dict[str, Any]:
    """The losses of a JSON file; whether they fit the model is asked later.

    Raises:
        RepackError: it is not there, or no JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RepackError(f"losses cannot be read: {text}", where=os.fspath(path)) from None
    if not isinstance(value, dict):
        raise RepackError("losses are no JSON object of tensors", where=os.fspath(path))
    return value
