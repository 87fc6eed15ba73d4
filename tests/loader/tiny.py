"""A small random Llama written block by block, and sources that watch how it is read.

Nothing is decomposed: every payload is drawn. The file has what files may have: three chains in one tensor, scales for
each chain or one for all, blocks of every kind, both types of factors, raw tensors of three types, tied head and
embedding, biases.
"""

import json
import threading
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bsformat
from bitstack.targets import find_targets
from bsformat import sparse
from bsformat.errors import SourceError
from bsformat.head import FIRST_READ
from bsformat.source import Buffer

LEVELS = 5
CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
}
EMBEDDING_GROUP = 40
#: What each level is. All sections of all payloads start at multiples of the size of what they hold.
FORMS = [
    bsformat.Form("sign", rank=2, factors="F8_E4M3"),
    bsformat.Form("plane"),
    bsformat.Form("sparse"),
    bsformat.Form("lowrank", rank=6, factors="F16"),
    bsformat.Form("sign", rank=1, factors="F16"),
]


def _values(draw: np.random.Generator, count: int, dtype: str, low: float = -1.0, high: float = 1.0) -> bytes:
    values = draw.uniform(low, high, count).astype("<f4")
    if dtype == "BF16":
        return (values.view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def _payload(draw: np.random.Generator, form: bsformat.Form, rows: int, columns: int) -> bytes:
    if form.kind == "sparse":
        place = draw.permutation(rows * columns)[: rows * columns // 25]
        codes = draw.integers(0x20, 0x50, len(place), np.uint8)
        return sparse.join(rows, 0.02, place // columns, place % columns, codes)
    signs = np.packbits(draw.integers(0, 2, (rows, columns), np.uint8), axis=1, bitorder="little").tobytes()
    signs = signs if form.has_signs else b""
    if not form.has_factors:
        return signs
    count = (rows + columns) * form.rank
    if form.factors == "F16":
        return signs + _values(draw, count, "F16", 0.05, 0.3)
    # e4m3 from 0x20 to 0x50 is 2⁻³ to 2³.
    return signs + draw.integers(0x20, 0x50, count, np.uint8).tobytes() + _values(draw, form.rank, "F32", 0.01, 0.03)


def write_tiny(path: Path, *, padded_head: bool) -> None:
    """Write the file; with ``padded_head`` its head is larger than the first read, so that no block comes with it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    draw = np.random.default_rng(5)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(AutoConfig.for_model(**CONFIG))
    targets = {target.name: target for target in find_targets(model)}
    tensors: list[bsformat.Tensor] = []
    for name, parameter in model.named_parameters():
        if name not in targets:
            dtype = "F32" if name.endswith("bias") else "F16" if "post_" in name else "BF16"
            tensors.append(bsformat.Tensor(name, tuple(parameter.shape), dtype))
            continue
        target, number = targets[name], len(tensors)
        group = EMBEDDING_GROUP if target.by_token else target.rows
        columns = (-(-target.rows // group), target.columns) if target.by_token else (target.columns,)
        tensors.append(bsformat.Tensor(f"{name}#row_scale", (target.rows,), "F16"))
        tensors.append(bsformat.Tensor(f"{name}#col_scale", columns, "BF16" if target.by_token else "F32"))
        tensors.append(bsformat.Tensor(name, (target.rows, target.columns), "BF16", group, number, number + 1))
    with bsformat.Writer(path, tensors) as writer:
        chains: list[int] = []
        for tensor in writer.tensors:
            if not tensor.packed:
                data = _values(draw, int(np.prod(tensor.shape)), tensor.dtype, 0.5, 1.0)
                writer.put(tensor.first_chain, bsformat.Form("raw"), data)
                continue
            for group in range(tensor.n_chains):
                rows = min(tensor.group_rows, tensor.rows - group * tensor.group_rows)
                for form in FORMS:
                    payload = _payload(draw, form, rows, tensor.columns)
                    writer.put(tensor.first_chain + group, form, payload)
                    chains.append(tensor.first_chain + group)
        draw.shuffle(chains)
        writer.attach("config.json", json.dumps(CONFIG).encode())
        for number in range(2 if padded_head else 0):
            writer.attach(f"noise/{number}.bin", draw.bytes(12_000))
        writer.finish(
            [(chain, float(len(chains) - i)) for i, chain in enumerate(chains)],
            aliases={"lm_head.weight": "model.embed_tokens.weight"},
        )


class _Held(bytearray):
    """Bytes that can be watched: a view of them keeps them alive."""


class WatchedSource(bsformat.MemorySource):
    """A source that notes every read, counts the bytes that it gave out and nobody let go, and fails when told to.

    Attributes:
        reads: (offset, length) of every read after the head, in the order in which they began.
        held: bytes asked for and not let go yet; ``most_held`` their maximum. Likewise ``running`` reads.
        trouble: called with offset and length before a read is answered; it may raise, or wait.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "tiny.bstk")
        self.lock = threading.Lock()
        self.reads: list[tuple[int, int]] = []
        self.held = self.most_held = self.running = self.most_running = 0
        self.trouble: Callable[[int, int], object] = lambda offset, length: None

    def get(self, offset: int, length: int) -> Buffer:
        with self.lock:
            self.reads.append((offset, length))
            self.running += 1
            self.held += length
            self.most_running = max(self.most_running, self.running)
            self.most_held = max(self.most_held, self.held)
        data = None
        try:
            self.trouble(offset, length)
            data = _Held(super().get(offset, length))
            weakref.finalize(data, self._released, length)
            return data
        finally:
            with self.lock:
                self.running -= 1
                if data is None:
                    self.held -= length

    def _released(self, length: int) -> None:
        with self.lock:
            self.held -= length

    def forget(self) -> None:
        """Forget the reads so far."""
        self.reads.clear()
        self.most_held = self.most_running = 0

    def tiled(self) -> tuple[int, int]:
        """The one range (start, stop) that the reads tile: nothing twice, nothing left out; (0, 0) without reads."""
        reads = sorted(self.reads)
        for (offset, length), (following, _) in pairwise(reads):
            assert offset + length == following, f"the reads do not tile: {reads}"
        return (reads[0][0], sum(reads[-1])) if reads else (0, 0)


def fails_beyond(limit: int) -> Callable[[int, int], None]:
    """A `WatchedSource.trouble`: reads that reach beyond byte ``limit`` of the file fail."""

    def trouble(offset: int, length: int) -> None:
        if offset + length > limit:
            raise SourceError("the cable is cut", where="tiny.bstk", offset=offset)

    return trouble


def fetched(container: bsformat.Container, first: int, stop: int) -> tuple[int, int]:
    """The range of the file that reading blocks [first, stop) must ask for: what came with the head is there."""
    last = container.block(stop - 1)
    have = FIRST_READ if container.superblock.head_length < FIRST_READ else 0
    return max(container.block(first).offset, have), last.offset + last.stored
