"""A large file of random blocks: ``python -m bitstack.tools.bench.random_file OUT.bstk --size 1GiB``.

It has the sizes of a large model and none of its meaning: matrices of 4096 × 4096 as chains of sign blocks of rank 16
with factors in float8, 2.1 MiB each. For measuring how fast blocks are read and checked.
"""

import argparse
import os

import numpy as np

import bsformat

SIDE = 4096
RANK = 16
LEVELS = 8


def write_random(path: str | os.PathLike[str], size: int, side: int = SIDE) -> None:
    """Write a file of at least ``size`` bytes.

    Args:
        side: rows and columns of each matrix.
    """
    draw = np.random.default_rng(0)
    form = bsformat.Form("sign", rank=RANK, factors="F8_E4M3")
    block_bytes = side * -(-side // 8) + 2 * side * RANK + 4 * RANK
    n_blocks = -(-size // block_bytes)
    tensors: list[bsformat.Tensor] = []
    for i in range(-(-n_blocks // LEVELS)):
        number = len(tensors)
        tensors.append(bsformat.Tensor(f"{i}.weight#row_scale", (side,), "F16"))
        tensors.append(bsformat.Tensor(f"{i}.weight#col_scale", (side,), "F16"))
        tensors.append(bsformat.Tensor(f"{i}.weight", (side, side), "BF16", side, number, number + 1))
    with bsformat.Writer(path, tensors) as writer:
        chains: list[int] = []
        for tensor in writer.tensors:
            if not tensor.packed:
                writer.put(tensor.first_chain, bsformat.Form("raw"), np.ones(side, "<f2").tobytes())
                continue
            for _ in range(min(LEVELS, n_blocks - len(chains))):
                signs = draw.bytes(side * -(-side // 8))
                factors = (draw.integers(0, 0x70, 2 * side * RANK, np.uint8)).tobytes()
                writer.put(tensor.first_chain, form, signs + factors + np.ones(RANK, "<f4").tobytes())
                chains.append(tensor.first_chain)
        order = [chains[i] for i in np.argsort([i % LEVELS for i in range(len(chains))], kind="stable")]
        writer.finish([(chain, float(len(order) - i)) for i, chain in enumerate(order)])


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", metavar="OUT.bstk")
    parser.add_argument("--size", default="1GiB")
    args = parser.parse_args()
    write_random(args.output, bsformat.parse_size(args.size))
    with bsformat.open(args.output) as container:
        print(f"{args.output}: {container.size} bytes, {len(container)} blocks, root {container.root}")


if __name__ == "__main__":
    main()
