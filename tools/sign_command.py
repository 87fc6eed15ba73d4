"""``bstk sign``."""

import argparse
import os

import bsformat

from .console import print_json, printable, reporter
from .options import source_options
from .output import check_output


def run(args: argparse.Namespace) -> int:
    """Check the file, sign it, and say what was signed.

    Raises:
        WriteError: the output exists, or cannot be written. Others: see `bsformat.sign`.
    """
    output = args.output or f"{args.uri}.sig"
    check_output(output, force=args.force)
    password = os.environ.get("BSTK_KEY_PASSWORD")
    with bsformat.open(args.uri, root=args.root, cache=False, **source_options(args)) as container:
        with reporter().stage("sign", container.size, "B") as advance:
            signed = bsformat.sign(
                container, args.key, output, password=password.encode() if password else None, progress=advance
            )
        uri = container.uri
    if args.json:
        said = {
            "root": signed.root,
            "sha256": signed.sha256 or None,
            "key": signed.key,
            "volumes": dict(signed.volumes),
        }
        print_json({"file": uri, "signature": output} | said)
    else:
        named = signed.volumes or [("", signed.sha256)]
        lines = [f"sha256  {sha256}  {printable(name)}".rstrip() for name, sha256 in named]
        print("\n".join([output, f"root    {signed.root}", *lines, f"key     {signed.key}"]))
    return 0
