"""The options of every command. Imports nothing heavy."""

import argparse
from typing import Any

from bitstack.fields import Switch, shown
from bitstack.recipe import recipe_settings
from bsformat import Network, format_size
from bsformat.network import BACKENDS, MEMORY_BYTES

from .values import byte_count, exact, memory, not_negative, positive, root, setting, size, storage_option, text, whole


def add_source(parser: argparse.ArgumentParser) -> None:
    """The file to read, and how."""
    parser.add_argument("uri", metavar="URI", help="the .bstk file")
    parser.add_argument("--root", metavar="HEX", type=root, help="the root digest that the file must have")
    parser.add_argument(
        "--storage-option",
        metavar="KEY=VALUE",
        dest="storage_options",
        type=storage_option,
        action="append",
        default=[],
        help="for fsspec, as endpoint_url=http://… for S3; may be repeated",
    )
    add_network(parser)
    add_json(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """How long to wait for a server, and how often to ask again."""
    # What the environment says is asked for when it is needed: it may be wrong, and help is given all the same.
    usual = Network(memory=MEMORY_BYTES, backend=BACKENDS[0])
    add = parser.add_argument_group("over http(s) and s3").add_argument
    add(
        "--allow-stream",
        action="store_true",
        help="read the file once, from its beginning to its end, where an HTTP server ignores byte ranges",
    )
    for flag, kind, unit, meaning in (
        ("attempts", whole(1), "N", "failed attempts before a read is given up"),
        ("deadline", positive, "SECONDS", "for one read of up to 16 MiB, attempts and pauses together"),
        ("connect-timeout", positive, "SECONDS", "for a connection"),
        ("stall-timeout", positive, "SECONDS", "without a byte"),
        ("minimum-rate", not_negative, "N", "bytes per second that an answer must bring over half a minute; 0: any"),
    ):
        value = getattr(usual, flag.replace("-", "_"))
        add(f"--{flag}", type=kind, metavar=unit, default=value, help=f"{meaning} (default: %(default)g)")
    add(
        "--memory",
        type=memory,
        metavar="SIZE",
        help="host memory for what is being read, beside what stays; local files too "
        f"(default: $BSTK_MEMORY, else {format_size(MEMORY_BYTES)})",
    )
    add(
        "--backend",
        choices=BACKENDS,
        help=f"what reads: obstore needs the extra of that name (default: $BSTK_BACKEND, else {BACKENDS[0]})",
    )


def source_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `bsformat.open` takes beside the URI and the root."""
    network = Network(
        attempts=args.attempts,
        deadline=args.deadline,
        connect_timeout=args.connect_timeout,
        stall_timeout=args.stall_timeout,
        minimum_rate=args.minimum_rate,
        allow_stream=args.allow_stream,
        **{name: value for name in ("memory", "backend") if (value := getattr(args, name)) is not None},
    )
    return {"network": network, **dict(args.storage_options)}


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the model runs."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; default: cuda if there is one")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what the model computes in; default: bfloat16 on cuda, else float32",
    )


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """What it computes with."""
    parser.add_argument(
        "--kernels",
        metavar="NAME",
        help="what multiplies: hopper, triton, numba, torch or reference; default: the fastest that runs on the device",
    )


def add_room(parser: argparse.ArgumentParser, usual: str) -> None:
    """What ``--budget auto`` leaves room for."""
    help_text = f"tokens of one sequence that --budget auto leaves room for (default: {usual})"
    parser.add_argument("--context", metavar="N", type=whole(1), help=help_text)


def add_volume_size(parser: argparse.ArgumentParser) -> None:
    """How large one object of the output may be."""
    parser.add_argument(
        "--volume-size",
        metavar="SIZE",
        type=byte_count,
        help="write a larger file as several objects of at most so much, as 4GiB: OUT.bstk, OUT.00002.bstk, … "
        "(default: one object)",
    )


def add_pack(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk pack``."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a Hugging Face directory or hub id, or a .gguf file")
    add("-o", "--output", metavar="OUT.bstk", required=True, help="the file to write")
    add("--force", action="store_true", help="replace the output file if it exists")
    add("--recipe", metavar="NAME|FILE", default="default", help="a recipe of bstk recipes, or a .yaml file")
    add("--device", help="cpu, cuda (every GPU there is), cuda:1, …; default: cuda if there is one")
    add("--work", metavar="DIR", help="where finished steps are kept until all is done (default: OUT.bstk.work)")
    add("--restart", action="store_true", help="discard what an earlier run left in the work folder")
    add("--keep-work", action="store_true", help="do not remove the work folder at the end")
    add_volume_size(parser)
    add_json(parser)
    groups: dict[str, Any] = {}
    for item in recipe_settings():
        section = item.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"over the recipe: {section}" if section else "over the recipe")
        shape: dict[str, Any] = {"type": setting(item.kind), "metavar": item.kind.metavar}
        if isinstance(item.kind, Switch):
            shape = {"action": argparse.BooleanOptionalAction}
        # A flag that is not there must not override what a recipe says, so it leaves no attribute.
        meaning = f"{item.meaning} (default: {shown(item.value)})".replace("%", "%%")
        groups[section].add_argument(item.flag, dest=item.path, default=argparse.SUPPRESS, help=meaning, **shape)


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk recipes``."""
    parser.add_argument("recipe", metavar="NAME|FILE", nargs="?", help="print this one with all of its settings")
    add_json(parser)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk inspect``."""
    add_source(parser)


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk verify``."""
    add_source(parser)
    parser.add_argument("--head", action="store_true", help="check the head alone, which is at most two requests")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk plan``."""
    add_source(parser)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--budget", metavar="SIZE", type=size, help="resident bytes of the weights")
    wanted.add_argument("--perplexity", metavar="P", type=positive, help="the perplexity to reach")
    add_room(parser, "4096, or what the model can read, if that is less")
    parser.add_argument(
        "--batch", metavar="N", type=whole(1), default=1, help="and so many sequences at once (default: %(default)s)"
    )
    add_device(parser)


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk generate``."""
    add_source(parser)
    add = parser.add_argument
    add("--budget", metavar="SIZE", type=size, default="auto", help="resident bytes of the weights (default: auto)")
    add("--prompt", metavar="TEXT", type=text, required=True, help="the text to continue, or the message to answer")
    add("--max-new-tokens", metavar="N", type=whole(1), default=64, help="tokens to write (default: %(default)s)")
    add("--raw", action="store_true", help="continue the prompt as it is, without the chat template of the tokenizer")
    add("--temperature", metavar="T", type=not_negative, default=0.0, help="above 0: sample (default: 0, greedy)")
    add(
        "--seed",
        metavar="N",
        type=whole(0, (1 << 64) - 1),
        default=0,
        help="seed of the sampling (default: %(default)s)",
    )
    add_room(parser, "the prompt and --max-new-tokens")
    add(
        "--progressive",
        action="store_true",
        help="begin to write with the smallest useful prefix, while the rest of the budget streams in behind it",
    )
    add_device(parser)
    add_kernels(parser)
    add_governor(parser)


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk tune``."""
    add = parser.add_argument
    add("--device", help="cuda, cuda:1, …; default: cuda if there is one")
    add(
        "--seconds",
        metavar="N",
        type=whole(1),
        default=300,
        help="begin no measurement after so long (default: %(default)s)",
    )
    add("--dry-run", action="store_true", help="measure and print, and keep nothing")
    add("--forget", action="store_true", help="measure nothing, and go back to what is shipped for this device")
    add("--json", action="store_true", help="print JSON")


def add_governor(parser: argparse.ArgumentParser) -> None:
    """Growing and shrinking while the model runs; any of these turns it on."""
    add = parser.add_argument_group("where the free memory varies: grow and shrink with it, between").add_argument
    add("--floor", metavar="SIZE", type=exact, help="the smallest budget (default: the minimum of the file)")
    add("--ceiling", metavar="SIZE", type=exact, help="the largest budget (default: all blocks)")
    add("--governor-log", metavar="FILE", help="write every decision into this file, one JSON object a line")


def add_fetch(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk fetch``."""
    add_source(parser)
    add = parser.add_argument
    add(
        "-o",
        "--output",
        metavar="OUT.bstk",
        required=True,
        help="the local file; one that is there is grown, OUT.bstk.part is what is being filled",
    )
    add(
        "--budget",
        metavar="SIZE",
        type=exact,
        default="100%",
        help="resident bytes of the weights (default: 100%%, the whole file)",
    )


def add_init_repo(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk init-repo``."""
    add_source(parser)
    add = parser.add_argument
    add("-o", "--output", metavar="DIR", required=True, help="the directory: new, empty, or written by this command")
    add("--budget", metavar="SIZE", type=exact, default="100%", help="how much of the file (default: 100%%)")
    add("--repo-id", metavar="OWNER/NAME", help="where it will be on the hub, for the examples of the model card")
    add("--base-model", metavar="OWNER/NAME", help="the hub's name of the model that was packed")
    add("--license", metavar="ID", help="its licence, as the hub names it: apache-2.0, mit, llama3.1, …")
    add("--title", metavar="TEXT", help="heading of the model card (default: the name of the packed model)")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk cache``."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("info", "clear", "verify"),
        default="info",
        help="info (the default), clear: remove everything, verify: check every block and take out what is damaged",
    )
    add_json(parser)
    parser.epilog = (
        "Blocks and heads of files read over http, s3 and the like are kept in $BSTK_CACHE, else in\n"
        "$XDG_CACHE_HOME/bitstack, else in ~/.cache/bitstack; BSTK_CACHE=off keeps none. The cache may have\n"
        "$BSTK_CACHE_SIZE (a size), else 20 GiB, or a tenth of the free disk if that is less; what was not\n"
        "used for longest goes first."
    )
