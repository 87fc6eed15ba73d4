"""``bstk cache``: the blocks of remote files that are kept on this machine."""

import argparse
from dataclasses import asdict

import bsformat
from bsformat import BstkError, format_size

from .console import exact_size, print_json


def run(args: argparse.Namespace) -> int:
    """Show the cache, empty it, or check it.

    Raises:
        BstkError: it is switched off.
    """
    cache = bsformat.default_cache()
    if cache is None:
        raise BstkError("the cache is switched off: BSTK_CACHE or BSTK_CACHE_SIZE says so", reason="cache-off")
    if args.action == "clear":
        freed = cache.clear()
        out, text = {"folder": cache.folder, "bytes_freed": freed}, f"{cache.folder}  {exact_size(freed)} removed"
    elif args.action == "verify":
        sound, damaged = cache.verify()
        out = {"folder": cache.folder, "n_blocks": sound, "n_removed": damaged}
        text = f"{cache.folder}  {sound} blocks are sound, {damaged} were damaged or lost and are taken out"
    else:
        info = cache.info()
        out = asdict(info)
        text = (
            f"{info.folder}  {exact_size(info.size)} of at most {format_size(info.limit)}\n"
            f"{info.n_blocks} blocks in {info.n_segments} segments, heads of {info.n_heads} files"
        )
    if args.json:
        print_json(out)
    else:
        print(text)
    return 0
