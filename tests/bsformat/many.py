"""A file of some hundred blocks with a head beyond the first read, and ways to read it; for tests of the cache."""

from pathlib import Path

import numpy as np

import bsformat
from bsformat.head import FIRST_READ
from tests.bsformat.conftest import RAW_FORM, sign_payload

SIGN = bsformat.Form("sign", rank=1, factors="F16")
REQUEST_BYTES = 1 << 14


def write_many(path: Path, *, n_tensors: int = 60, seed: int = 1, levels: int = 4) -> bytes:
    """Write the file and give its bytes: two scales and ``levels`` blocks of each tensor, and an attached file."""
    draw = np.random.default_rng(seed)
    tensors: list[bsformat.Tensor] = []
    for i in range(n_tensors):
        tensors.append(bsformat.Tensor(f"w{i}.rows", (30,), "F32"))
        tensors.append(bsformat.Tensor(f"w{i}.columns", (50 + i,), "F32"))
        tensors.append(bsformat.Tensor(f"w{i}", (30, 50 + i), "F16", 30, 3 * i, 3 * i + 1))
    with bsformat.Writer(path, tensors, compress=False) as writer:
        for i in range(n_tensors):
            for chain, width in ((3 * i, 30), (3 * i + 1, 50 + i)):
                writer.put(chain, RAW_FORM, draw.uniform(0.5, 2, width).astype("<f4").tobytes())
            for level in range(levels):
                writer.put(3 * i + 2, SIGN, sign_payload(SIGN, 30, 50 + i, seed * 10_000 + i * 10 + level))
        writer.attach("tokenizer.json", draw.bytes(30_000))
        order = [(3 * i + 2, float(levels - level)) for level in range(levels) for i in range(n_tensors)]
        writer.finish(order)
    return path.read_bytes()


def read_blocks(container: bsformat.Container, first: int, stop: int) -> list[bytes]:
    """The payloads of blocks [first, stop), read as the loader reads them: span by span."""
    out = []
    for span in container.spans(first, stop, REQUEST_BYTES):
        out += [bytes(data) for _, data in container.decode_span(span, container.read(span.offset, span.length))]
    return out


def end_of(container: bsformat.Container, n_blocks: int) -> int:
    """Where the first ``n_blocks`` blocks end in the file."""
    plan = container.planner.prefix(n_blocks)
    return plan.offset + plan.length


def head_bytes(container: bsformat.Container) -> int:
    """What opening reads of a file that is not in the cache."""
    return max(FIRST_READ, container.superblock.head_length)
