"""``bstk pack``."""

import argparse
import os
import time

import bsformat
from bitstack.recipe import Recipe, recipe_settings
from bitstack.recipe_file import load_recipe
from bsformat.errors import ModelError

from . import summary
from .console import exact_size, print_json, printable, quiet_libraries, reporter
from .output import check_output

#: A raw parameter of at least this share of the dense model is named.
_LARGE = 0.005
_SMALL = "too small, or no matrix"


def run(args: argparse.Namespace) -> int:
    """Pack the model, and say what came out of it.

    Raises:
        WriteError: the output exists, or cannot be written. RecipeError: see `recipe_from`.
        ModelError: see `bitstack.pack`.
    """
    recipe = recipe_from(args)
    check_paths(args.output, recipe.calib.text, force=args.force)
    import bitstack

    from .devices import find_devices

    quiet_libraries()
    started = time.monotonic()
    packed = bitstack.pack(
        args.model,
        args.output,
        recipe=recipe,
        report=reporter(),
        devices=find_devices(args.device),
        work=args.work,
        restart=args.restart,
        keep_work=args.keep_work,
        volume_size=args.volume_size,
    )
    seconds = time.monotonic() - started
    with bsformat.open(packed.path) as container:
        tensors = [t for t in container.model_tensors.values() if t.packed]
        dense, total = container.dense_bytes, container.total_bytes
        raw = [t for t in container.model_tensors.values() if not t.packed]
        large = {t.name: t.dense_bytes for t in raw if t.dense_bytes >= _LARGE * dense}
        volumes = [volume.name for volume in container.volumes]
        bits = summary.bits_per_parameter(container, total)
    if args.json:
        print_json(
            {
                "file": packed.path,
                "root": packed.root,
                "recipe": recipe.name,
                "size": packed.size,
                "volumes": volumes,
                "dense_bytes": dense,
                "total_bytes": total,
                "packed_tensors": len(tensors),
                "raw_tensors": len(raw),
                "large_raw_tensors": large,
                "why_raw": {name: packed.why_raw.get(name, _SMALL) for name in large},
                "whole_model": packed.whole or None,
                "untuned": packed.untuned or None,
                "seconds": round(seconds, 3),
            }
        )
        return 0
    print(printable(packed.path))
    print(f"  root     {packed.root}")
    print(f"  size     {exact_size(packed.size)}, dense {exact_size(dense)}")
    if volumes:
        print(f"  volumes  {len(volumes)}, up to {volumes[-1]}")
    print(f"  packed   {len(tensors)} tensors, {bits:.2f} bits per parameter with all blocks")
    print(f"  raw      {len(raw)} tensors{', none of them large' if not large else ', these of them large:'}")
    for name, size in large.items():
        print(f"           {printable(name)}, {exact_size(size)}: {packed.why_raw.get(name, _SMALL)}")
    if packed.whole:
        print(f"  memory   held the whole model, which cannot be run one layer at a time: {printable(packed.whole)}")
    if packed.untuned:
        print(f"  scales   not tuned: {printable(packed.untuned)}")
    return 0


def check_paths(output: str, calib: str, *, force: bool) -> None:
    """Refuse at once what would fail after minutes of work.

    Raises:
        WriteError: the output exists and is not to be replaced, or is no place for a file.
        ModelError: there is no calibration text.
    """
    check_output(output, force=force)
    if calib != "self" and not os.path.isfile(calib):
        raise ModelError("no such calibration text; name a file, or self", where=calib, reason="text")


def recipe_from(args: argparse.Namespace) -> Recipe:
    """The recipe that the options of ``bstk pack`` describe.

    Raises:
        RecipeError: there is no such recipe, or its settings and the flags do not go together.
    """
    given = vars(args)
    return load_recipe(args.recipe).changed({e.path: given[e.path] for e in recipe_settings() if e.path in given})
