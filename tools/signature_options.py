"""The options that sign a file, and those that demand a signature of one. Imports nothing heavy."""

import argparse

from bsformat.errors import IntegrityError

from .options import add_source, source_options

#: Commands that read a file, and may demand that it is signed.
READING = ("inspect", "verify", "plan", "generate", "serve", "fetch", "eval", "repack", "export", "demo", "init-repo")


def add_sign(parser: argparse.ArgumentParser) -> None:
    """Options of ``bstk sign``."""
    add_source(parser)
    add = parser.add_argument
    add("--key", metavar="FILE", required=True, help="the private key: PEM, on the curve P-256, P-384 or P-521")
    add("-o", "--output", metavar="OUT.sig", help="where the signature goes (default: the file's name with .sig)")
    add("--force", action="store_true", help="replace the output file if it exists")
    parser.epilog = (
        "$BSTK_KEY_PASSWORD is the password of an encrypted key. The signature is an OpenSSF model signature of the\n"
        "file, and names its root: who checks it needs the head of the file alone, or any prefix of it.\n"
        f"{parser.epilog or ''}"
    )


def add_signature(parser: argparse.ArgumentParser) -> None:
    """Options that take the root to demand from a signature."""
    add = parser.add_argument_group("a signature that the file must have (bstk sign)").add_argument
    add("--signature", metavar="URI", help="the signature; it takes the place of --root")
    add("--public-key", metavar="FILE", help="the public key of who must have made it")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Wrong usage that argparse does not see."""
    if (getattr(args, "signature", None) is None) != (getattr(args, "public_key", None) is None):
        parser.error("--signature and --public-key go together")
    if args.command == "sign" and args.output is None and "://" in args.uri:
        parser.error("-o names the signature of a file that is not on this machine")


def demand(args: argparse.Namespace) -> None:
    """Check the signature, if there is one, and demand the root that it names. ``args.signed`` becomes what it says.

    Raises:
        SignatureError: it does not hold. IntegrityError: it names another root than ``--root``.
    """
    args.signed = None
    if getattr(args, "signature", None) is None:
        return
    from bsformat import read_signature

    args.signed = read_signature(args.signature, args.public_key, **source_options(args))
    if args.root not in (None, args.signed.root):
        raise IntegrityError(
            f"a signature of root {args.signed.root}, but {args.root} was demanded: it is of another file",
            where=args.signature,
            reason="root-mismatch",
        )
    args.root = args.signed.root
