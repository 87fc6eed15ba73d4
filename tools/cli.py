"""The command ``bstk``: what it takes, and how it ends.

Exit codes: 0 done; 1 the file or the run failed, with one line on stderr; 2 wrong usage; 130 interrupted. Results
go to stdout, progress to stderr, and only if that is a terminal; what ``auto`` came to goes to stderr too. Commands are
imported when they run, so that help and usage errors answer at once, without torch.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from bsformat import __version__

from . import (
    convert_options,
    demo_options,
    eval_options,
    options,
    repack_options,
    serve_options,
    signature_options,
)
from .ending import ended, settle_streams

_DESCRIPTION = "Pack a language model once; run any prefix of the file that fits."
_EPILOG = """\
URI is a path, http(s)://, s3://, hf://owner/name[@revision]/file, or anything else that fsspec opens.
SIZE is 80MiB, 3.5GiB, 80MB, a number of bytes, 60% (of all blocks), or auto: what the device has free, less
the cache of keys and values, the workspace of a pass, and a spare; stderr says how it came about.
Exit codes: 0 done, 1 the file or the run failed (one line on stderr says why), 2 wrong usage."""

#: Commands to whose options none of that applies.
_WITHOUT_URI = frozenset({"pack", "recipes", "cache", "tune", "convert"})


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="bstk",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bstk {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, help_text, add in (
        ("pack", "pack a model into one .bstk file", options.add_pack),
        ("recipes", "list the recipes of bstk pack, or print one", options.add_recipes),
        ("inspect", "show what is in a file; reads only its head", options.add_inspect),
        ("verify", "check every byte of a file", options.add_verify),
        ("plan", "what a budget buys, or what a perplexity costs", options.add_plan),
        ("generate", "load within a budget and continue a prompt", options.add_generate),
        ("demo", "open a page that writes at two budgets, with a slider for each", demo_options.add_demo),
        ("serve", "answer requests as OpenAI's API has them; the budget may change meanwhile", serve_options.add_serve),
        ("fetch", "make a local file of what a budget buys; grow it later", options.add_fetch),
        ("tune", "measure how the kernels are best cut for this GPU, and keep that", options.add_tune),
        ("repack", "reorder the blocks of a file, drop some, or store them otherwise", repack_options.add_repack),
        ("convert", "make a file of a published BitStack checkpoint", convert_options.add_convert),
        ("export", "write what a budget buys as safetensors or GGUF, for other programs", convert_options.add_export),
        ("sign", "check every byte of a file and sign its root", signature_options.add_sign),
        ("init-repo", "write a directory that transformers loads and a model hub shows", options.add_init_repo),
        ("cache", "show, empty or check what is kept of remote files", options.add_cache),
        ("eval", "measure quality at several budgets, beside other ways to spend the bytes", eval_options.add_eval),
    ):
        command = commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=_EPILOG if name not in _WITHOUT_URI else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add(command)
        if name in signature_options.READING:
            signature_options.add_signature(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (None: of this process) and give its exit code.

    Raises:
        SystemExit: from argparse, for ``--help``, ``--version`` and wrong usage (code 2).
    """
    settle_streams()  # before help is printed
    parser = build_parser()
    args = parser.parse_args(argv)
    signature_options.check(parser, args)
    convert_options.check(parser, args)

    def run() -> int:
        signature_options.demand(args)
        return int(import_module(f".{args.command.replace('-', '_')}_command", __package__).run(args))

    return ended(run, "bstk")


if __name__ == "__main__":
    sys.exit(main())
