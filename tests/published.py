"""Checkpoints in the layout in which the authors of BitStack publish theirs, written for tests.

`Checkpoint` takes a small dense model apart as the paper says and writes the result; `values` puts a matrix together
again in float64, by its own code.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.models import save_llama

Array = npt.NDArray[Any]

#: Neither side of any matrix is a multiple of 8.
RAGGED: Mapping[str, int | bool] = {
    "hidden_size": 44,
    "intermediate_size": 53,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
#: More than the 16 of the published ones.
RANK = 17
LEVELS = 4


def decompose(weight: Array, levels: int, rank: int, *, signed: bool = True) -> list[dict[str, Array]]:
    """The levels of a matrix float32 [M, N]: qweight uint8 [ceil(M·N / 8)], u float16 [M, k], vt float16 [k, N]."""
    rest, out = weight.astype(np.float64), []
    for _ in range(levels):
        sign = np.where(rest >= 0, 1.0, -1.0) if signed else np.ones_like(rest)
        u, s, vt = np.linalg.svd(np.abs(rest) if signed else rest, full_matrices=False)
        root = np.sqrt(s[:rank])
        level = {"u": (u[:, :rank] * root).astype("<f2"), "vt": (root[:, None] * vt[:rank]).astype("<f2")}
        if signed:
            level["qweight"] = np.packbits((sign > 0).reshape(-1))
        out.append(level)
        rest = rest - sign * (level["u"].astype(np.float64) @ level["vt"].astype(np.float64))
    return out


def values(levels: Sequence[Mapping[str, Array]], count: int) -> Array:
    """The matrix that the first ``count`` levels stand for: float64 [M, N], summed as the specification says."""
    rows, columns = levels[0]["u"].shape[0], levels[0]["vt"].shape[1]
    total = np.zeros((rows, columns))
    for level in levels[:count]:
        product = np.zeros((rows, columns))
        for u, vt in zip(level["u"].T.astype(np.float64), level["vt"].astype(np.float64), strict=True):
            product += np.outer(u, vt)
        if "qweight" in level:
            bits = np.unpackbits(level["qweight"])[: rows * columns].reshape(rows, columns)
            product = np.where(bits == 1, product, -product)
        total += product
    return total


def _drawn(draw: np.random.Generator, rows: int, columns: int, rank: int) -> list[dict[str, Array]]:
    """Levels of no matrix in particular: that takes no time."""
    return [
        {
            "u": draw.uniform(0, 0.1, (rows, rank)).astype("<f2"),
            "vt": draw.uniform(0, 0.1, (rank, columns)).astype("<f2"),
            "qweight": draw.integers(0, 256, -(-rows * columns // 8), np.uint8),
        }
        for _ in range(LEVELS)
    ]


class Checkpoint:
    """A checkpoint in memory, to be damaged and written.

    Args:
        signed: with signs. drawn: its levels are drawn, and nothing is taken apart.
        changes: to the configuration, which is `RAGGED` else.

    Attributes:
        folder: where it goes; its configuration and tokenizer are there.
        levels: path of a linear layer -> its levels. raw: all other tensors.
        order: the linear layers in the order in which they get their second, third, … level.
    """

    def __init__(
        self, folder: Path, *, signed: bool = True, rank: int = RANK, drawn: bool = False, **changes: int | bool
    ) -> None:
        from safetensors.numpy import load_file

        self.folder = save_llama(folder, **(dict(RAGGED) | changes))
        dense = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        self.levels: dict[str, list[dict[str, Array]]] = {}
        self.raw: dict[str, Array] = {}
        draw = np.random.default_rng(3)
        for name, value in dense.items():
            if "_proj" in name and name.endswith(".weight"):
                path = name.removesuffix(".weight")
                self.levels[path] = (
                    _drawn(draw, *value.shape, rank) if drawn else decompose(value, LEVELS, rank, signed=signed)
                )
            else:
                self.raw[name] = value.astype("<f2")
        self.order = [path for _ in range(1, LEVELS) for path in draw.permutation(list(self.levels)).tolist()]

    def tensors(self) -> dict[str, Array]:
        """Everything, by its name in the files."""
        parts = {
            f"{path}.{kind}_{i}": value
            for path, levels in self.levels.items()
            for i, level in enumerate(levels)
            for kind, value in level.items()
        }
        return self.raw | parts

    def configurations(self) -> list[dict[str, Any]]:
        """What compression_config.json holds."""
        counts = {f"layer.{path.removeprefix('model.layers.')}": 1 for path in self.levels}
        out = [{"memory": 1000, "layers": dict(counts)}]
        for path in self.order:
            counts[f"layer.{path.removeprefix('model.layers.')}"] += 1
            out.append({"memory": out[-1]["memory"] + 10, "layers": dict(counts)})
        return out

    def write(self, *, shards: int = 3, drop: Sequence[str] = (), configurations: Any = None) -> Path:
        """Write it; gives its folder.

        Args:
            drop: names of tensors that are left out.
            configurations: in the place of `configurations`.
        """
        from safetensors.numpy import save_file

        tensors = {name: value for name, value in self.tensors().items() if name not in drop}
        names = sorted(tensors)
        files: dict[str, list[str]] = {}
        for number in range(shards):
            files[f"model-{number + 1:05}-of-{shards:05}.safetensors"] = names[number::shards]
        for file, own in files.items():
            save_file({name: np.ascontiguousarray(tensors[name]) for name in own}, self.folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        said = self.configurations() if configurations is None else configurations
        (self.folder / "compression_config.json").write_text(json.dumps(said, indent=4))
        return self.folder
