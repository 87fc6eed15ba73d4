"""``bstk convert``: checkpoints of other formats as a ``.bstk``."""

import argparse

from .console import exact_size, print_json, printable, quiet_libraries, reporter
from .output import check_output


def run(args: argparse.Namespace) -> int:
    """Convert, and say what came out of it.

    Raises:
        WriteError: the output exists, or cannot be written. ModelError: see `bitstack.convert.convert_bitstack`.
    """
    check_output(args.output, force=args.force)
    from bitstack.convert import convert_bitstack

    quiet_libraries()
    made = convert_bitstack(args.folder, args.output, order=args.order, report=reporter())
    if args.json:
        print_json(made.to_json())
        return 0
    ranks, levels = (str(low) if low == high else f"{low} to {high}" for low, high in (made.ranks, made.levels))
    print(f"{printable(made.path)}  {made.n_blocks} blocks, {exact_size(made.size)}")
    print(f"root    {made.root}")
    print(f"layers  {made.linears} linear layers of {levels} levels of rank {ranks}, in the order: {made.order}")
    print(f"as is   {made.raw_tensors} tensors, {exact_size(made.raw_bytes)} with scales: part of every budget")
    print(f"holds   {exact_size(made.total_bytes)} when all of it is resident")
    return 0
