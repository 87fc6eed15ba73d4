"""The options of ``bstk convert`` and ``bstk export``. Imports nothing heavy."""

import argparse

from .options import add_json, add_source
from .values import exact, memory

#: What can be converted.
FORMATS = ("bitstack",)
ORDERS = ("published", "worth", "average")
#: What can be exported to, and the types of the weights there.
TARGETS = {
    "safetensors": ("float16", "bfloat16", "float32"),
    "gguf": ("float16", "bfloat16", "float32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
}


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk convert``."""
    add = parser.add_argument
    add(
        "format", metavar="FORMAT", choices=FORMATS, help="bitstack: a checkpoint as the authors of BitStack publish it"
    )
    add("folder", metavar="DIR", help="its directory: config.json, tokenizer, *.safetensors, compression_config.json")
    add("-o", "--output", metavar="OUT.bstk", required=True, help="the file to write")
    add("--force", action="store_true", help="replace the output file if it exists")
    add(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        help="published: that of compression_config.json; worth: by worth per byte; average: level by level, by worth "
        "within a level (default: %(default)s)",
    )
    add_json(parser)
    parser.epilog = (
        "Signs and factors stay as they are, bit by bit. The worth of a level is the share of the squared error of\n"
        "its layer's output that it removes, per byte; bstk repack orders by losses of your own (--losses).\n"
        "What was not decomposed (embeddings, norms, head) is stored as it is, and is part of every budget."
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk export``."""
    add_source(parser)
    add = parser.add_argument
    add("--to", choices=TARGETS, required=True, help="a directory of safetensors, or one GGUF file")
    add("-o", "--output", metavar="DIR|FILE", required=True, help="the directory or the file; it appears when complete")
    add("--force", action="store_true", help="replace a file, or a directory that an export wrote")
    add(
        "--budget",
        metavar="SIZE",
        type=exact,
        default="100%",
        help="the model as these resident bytes of the file have it (default: 100%%); the export is dense, and larger",
    )
    add(
        "--dtype",
        choices=TARGETS["gguf"],
        help="of the weights; those from q8_0 on for gguf only (default: what most of them were before packing)",
    )
    add(
        "--shard-size",
        metavar="SIZE",
        type=memory,
        help="bytes of the tensors of one safetensors file (default: 5GB)",
    )
    parser.epilog = (
        "For programs that know nothing of .bstk files. Every weight is rounded once to the type. safetensors take\n"
        "any architecture, gguf takes Llama, Mistral, Qwen2 and Qwen3 (extra gguf). Of a remote file the prefix is\n"
        "fetched beside the output first.\n\n"
        f"{parser.epilog or ''}"
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Wrong usage that argparse does not see."""
    if args.command != "export":
        return
    if args.dtype is not None and args.dtype not in TARGETS[args.to]:
        parser.error(f"--dtype {args.dtype} is for gguf: safetensors have {', '.join(TARGETS['safetensors'])}")
    if args.shard_size is not None and args.to != "safetensors":
        parser.error("--shard-size is for safetensors: a GGUF file is one")
