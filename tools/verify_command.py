"""``bstk verify``."""

import argparse
from dataclasses import asdict

import bsformat
from bsformat.errors import FormatError

from .console import print_json, printable, reporter
from .options import source_options


def run(args: argparse.Namespace) -> int:
    """Check every byte, or the head alone; what is wrong goes to stdout, one line each.

    Raises:
        FormatError: something was wrong.
    """
    with bsformat.open(args.uri, root=args.root, cache=False, **source_options(args)) as container:
        if args.head:
            return _head(args, container)
        with reporter().stage("verify", container.superblock.present_length, "B") as advance:
            report = bsformat.verify(container, progress=advance)
        size = report.size
    if args.json:
        print_json(
            {
                "ok": report.ok,
                "file": report.uri,
                "root": report.root,
                "format_version": report.version,
                "n_blocks": report.n_blocks,
                "bytes_checked": size,
                "signed": None if args.signed is None else asdict(args.signed),
                "problems": [{"reason": e.reason, "offset": e.offset, "message": e.message} for e in report.problems],
            }
        )
    else:
        for problem in report.problems:
            print(printable(problem))
        if report.ok:
            print(f"OK root {report.root}, {report.n_blocks} blocks, {size} bytes checked{_by(args)}")
    if not report.ok:
        count = len(report.problems)
        raise FormatError(
            f"{count} {'part is' if count == 1 else 'parts are'} damaged, as listed; fetch the file again",
            where=report.uri,
            reason="damaged",
        )
    return 0


def _head(args: argparse.Namespace, container: bsformat.Container) -> int:
    """The head is checked, since it was opened: with it everything that a block is compared with later."""
    checked = container.superblock.head_length
    if args.json:
        print_json(
            {
                "ok": True,
                "file": container.uri,
                "root": container.root,
                "format_version": container.version,
                "n_blocks": 0,
                "bytes_checked": checked,
                "signed": None if args.signed is None else asdict(args.signed),
                "problems": [],
            }
        )
    else:
        print(f"OK root {container.root}, the head alone, {checked} bytes checked{_by(args)}")
    return 0


def _by(args: argparse.Namespace) -> str:
    return "" if args.signed is None else f", signed with key {args.signed.key}"
