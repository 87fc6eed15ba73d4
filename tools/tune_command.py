"""``bstk tune``: how the Triton kernels are best cut for a GPU, measured there and kept for it."""

import argparse
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bsformat import BstkError

from .console import print_json, reporter

if TYPE_CHECKING:
    import torch

    from bitstack.kernels.configs import Config

    from .tuning import Measure

SHAPES: Final = ((4096, 4096), (14336, 4096), (4096, 14336), (576, 1536))
"""Products that count alike: of large models, and of a small one."""


def run(args: argparse.Namespace) -> int:
    """Search from what is used now, and keep what was found.

    Raises:
        BstkError: there is no GPU, or what was found cannot be kept.
    """
    import torch

    from bitstack.kernels import configs

    from .devices import find_device
    from .tuning import search

    device = find_device(args.device)
    if device.type != "cuda":
        raise BstkError(f"there is nothing to tune on {device}: only kernels for GPUs have settings", reason="device")
    name, path = torch.cuda.get_device_name(device), configs.config_file()
    out: dict[str, Any] = {"device": name}
    try:
        if args.forget:
            configs.keep_config(path, name, None)
            out |= {"config": asdict(configs.shipped(device))}
            text = f"{name}: back to what is shipped"
        else:
            with reporter().stage("tune", 0, "configuration") as advance:
                found = search(configs.choose(device), products(device), args.seconds, lambda *_: advance(1))
            if not args.dry_run:
                configs.keep_config(path, name, found.config)
            out |= {
                "config": asdict(found.config),
                "microseconds": round(found.microseconds, 3),
                "microseconds_before": round(found.before, 3),
                "tried": len(found.tried),
                "complete": found.complete,
                "file": None if args.dry_run else str(path),
            }
            ended = "" if found.complete else " before the time was over"
            text = (
                f"{name}: {found.before:.2f} to {found.microseconds:.2f} microseconds, "
                f"{len(found.tried)} configurations tried{ended}; {'not kept' if args.dry_run else f'kept in {path}'}"
            )
    except (OSError, ValueError) as error:
        raise BstkError(f"the configurations cannot be kept: {error}", where=str(path), reason="config") from None
    print_json(out) if args.json else print(text)
    return 0


def products(device: "torch.device") -> "Measure":
    """Measure one-token products of four blocks with a configuration; None where it does not compile or run."""
    import torch

    from bitstack.kernels import Table
    from bitstack.kernels.decode import multiply_few

    from .bench.random_chains import random_chain
    from .bench.timing import measure, own_stream
    from .tuning import geometric_mean

    cases = []
    for rows, columns in SHAPES:
        table = Table(random_chain("sign", rows, columns, 4, device))
        x = torch.randn(1, columns, device=device).bfloat16()
        cases.append((x, table, torch.empty(1, rows, device=device, dtype=x.dtype)))

    def cost(config: "Config") -> float | None:
        times = []
        try:
            with torch.no_grad(), own_stream(device):
                for x, table, out in cases:
                    times.append(measure([partial(multiply_few, x, table, None, out, config)], device).median)
        except Exception:  # too much shared memory, or no such instruction: what a search is there to find out
            return None
        return geometric_mean(times)

    return cost
