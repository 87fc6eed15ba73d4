"""How the error of the logits falls with every level: ``python -m bitstack.tools.bench.levels FILE --model DENSE``.

Loads the dense model, then levels 0 … L−1 of every chain for L = 1, 2, …, and prints the relative error of the logits
on a fixed prompt, ‖packed − dense‖ / ‖dense‖, as JSON. The mean of each position is taken off first: a constant added
to all logits of a position changes no probability.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch

import bsformat
from bitstack import load_tokenizer
from bitstack.checkpoint import open_checkpoint
from bitstack.loader import stream_blocks
from bitstack.shell import Shell
from bitstack.tools.console import quiet_libraries
from bitstack.tools.devices import hardware, versions
from bsformat import Block, Container

PROMPT = (
    "The library opened at nine, and by ten every table in the reading room was taken. Rain ran down the tall windows "
    "while the students copied notes, whispered about the examination, and waited for the kettle in the corridor."
)


def errors_by_level(container: Container, ids: torch.Tensor, dense: torch.Tensor) -> Iterator[tuple[int, int, float]]:
    """For each number of levels: it, the resident bytes, and the relative error of the logits."""
    levels = int(container.index.level.max()) + 1
    shell = Shell(container, device=torch.device("cpu"), dtype=torch.float32)
    by_level: list[list[tuple[Block, bytes]]] = [[] for _ in range(levels)]
    change = shell.change()
    for block, payload in stream_blocks(container, 0, container.available_blocks):
        if block.tensor.packed:
            by_level[block.level].append((block, bytes(payload)))
        else:
            change.put(block, payload)
    for level in range(levels):
        for block, data in by_level[level]:
            change.put(block, data)
        change.commit()
        change.forget()
        with torch.inference_mode():
            logits = centred(shell.model(input_ids=ids).logits)
        yield level + 1, shell.resident_bytes, float((logits - dense).norm() / dense.norm())


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Logits [..., vocabulary] without the mean of each position."""
    return logits - logits.mean(-1, keepdim=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the packed file")
    parser.add_argument("--model", required=True, help="the dense model that it was packed from")
    args = parser.parse_args()
    quiet_libraries()
    with bsformat.open(args.file) as container:
        ids = load_tokenizer(container)(PROMPT, return_tensors="pt").input_ids
        with torch.inference_mode():
            dense = centred(open_checkpoint(args.model).model(input_ids=ids).logits)
        rows: list[dict[str, Any]] = [
            {"levels": n, "resident_bytes": size, "relative_error": error}
            for n, size, error in errors_by_level(container, ids, dense)
        ]
        out = {"root": container.root, "tokens": ids.numel(), "rows": rows}
    print(json.dumps(out | {"hardware": hardware(torch.device("cpu")), "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
