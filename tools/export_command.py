"""``bstk export``: what a budget buys, as a checkpoint for other programs."""

import argparse

from .console import exact_size, print_json, printable, quiet_libraries, reporter
from .options import source_options
from .output import check_output


def run(args: argparse.Namespace) -> int:
    """Export, and say what came out of it.

    Raises:
        WriteError: the output exists, or cannot be written. ModelError and others: see `bitstack.export`.
    """
    if args.to == "gguf":
        check_output(args.output, force=args.force)
    from bitstack.export import SHARD_BYTES, export_safetensors
    from bitstack.export_gguf import export_gguf

    quiet_libraries()
    options = {
        "budget": args.budget,
        "dtype": args.dtype,
        "replace": args.force,
        "report": reporter(),
        "root": args.root,
        **source_options(args),
    }
    if args.to == "gguf":
        made = export_gguf(args.uri, args.output, **options)
    else:
        made = export_safetensors(args.uri, args.output, shard_bytes=args.shard_size or SHARD_BYTES, **options)
    if args.json:
        print_json(made.to_json())
        return 0
    part = "all" if made.n_blocks == made.total_blocks else f"{made.n_blocks:,} of {made.total_blocks:,}"
    print(f"{printable(made.path)}  {made.format} in {made.dtype}, {exact_size(made.size)} in {made.tensors} tensors")
    print(f"made of {made.root}, {part} blocks, {exact_size(made.resident_bytes)} there")
    if len(made.files) > 1:
        print(f"files   {', '.join(made.files)}")
    for note in made.notes:
        print(f"note    {note}")
    return 0
