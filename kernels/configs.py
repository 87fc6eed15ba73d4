"""How the Triton kernels are cut for the device they run on: shipped, so that no first call searches, or a user's own.

``bstk tune`` measures, and keeps what it finds in a file of the user's, by the name of the GPU.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

from .devices import capability


@dataclass(frozen=True, slots=True)
class Config:
    """How `decode` cuts its work.

    Attributes:
        tokens: tokens that one launch takes; more take several. A power of two.
        rows: rows of a tile, a power of two.
        slice: columns of a slice, a multiple of 8 · bytes.
        bytes: bytes of signs of a row that are loaded at a time, a power of two.
        warps: of a program, a power of two.
        stages: tiles of signs that are in flight, plus one.
        chunk: columns that a program takes which scales the input; divides the slice, a multiple of 8 · bytes.
        scale_warps: warps of such a program, a power of two.

    Raises:
        ValueError: a number is out of its range, or they do not go together.
    """

    tokens: int
    rows: int
    slice: int
    bytes: int
    warps: int
    stages: int
    chunk: int
    scale_warps: int

    def __post_init__(self) -> None:
        ranges = {"tokens": (1, 4), "rows": (16, 256), "slice": (128, 8192), "bytes": (16, 128), "warps": (1, 16)}
        ranges |= {"stages": (1, 8), "chunk": (128, 8192), "scale_warps": (1, 16)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
            if name != "stages" and value & (value - 1):
                raise ValueError(f"{name} must be a power of two, not {value}")
        if self.slice % self.chunk or self.chunk % (8 * self.bytes):
            raise ValueError(
                f"8 * bytes = {8 * self.bytes} must divide chunk = {self.chunk}, and that slice = {self.slice}"
            )


HOPPER: Final = Config(tokens=2, rows=128, slice=2048, bytes=64, warps=4, stages=3, chunk=512, scale_warps=8)
"""NVIDIA H100 and H200, for what the backend hopper is not for."""
SMALL: Final = Config(tokens=1, rows=32, slice=256, bytes=16, warps=1, stages=2, chunk=128, scale_warps=4)
"""For the interpreter, where a program costs the same whatever it does."""
OTHER: Final = Config(tokens=1, rows=64, slice=1024, bytes=32, warps=4, stages=2, chunk=512, scale_warps=8)
"""Any other GPU."""


def config_file() -> Path:
    """Where a user's own configurations are: $XDG_CONFIG_HOME/bstk/kernels.json."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "bstk" / "kernels.json"


def kept_configs(path: Path) -> dict[str, Config]:
    """Read a file of configurations: by the name of a GPU, an object with the attributes of `Config`.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        return {str(name): _config(name, values) for name, values in found.items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}: mend it, or remove it to use what is shipped") from None


def _config(name: str, values: Any) -> Config:
    names = {field.name for field in fields(Config)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"{name!r} must have {', '.join(sorted(names))}, and nothing else")
    try:
        return Config(**values)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from None


def keep_config(path: Path, name: str, config: Config | None) -> None:
    """Write the configuration of a GPU beside those of others, or take it out; the file is replaced whole.

    Raises:
        ValueError: what is there cannot be read. OSError: it cannot be written.
    """
    known = kept_configs(path)
    known.pop(name, None)
    if config is not None:
        known[name] = config
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: asdict(value) for key, value in sorted(known.items())}, indent=2) + "\n"
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
    chosen.cache_clear()


@cache
def chosen(device: torch.device) -> Config:
    """What is kept for a CUDA device by its name, else what is shipped for its kind."""
    kept = kept_configs(config_file()).get(torch.cuda.get_device_name(device))
    return kept or shipped(device)


def shipped(device: torch.device) -> Config:
    """The configuration that comes with the package for a CUDA device."""
    return HOPPER if capability(device)[0] == 9 else OTHER


def choose(device: torch.device) -> Config:
    """Return the configuration for a device.

    Raises:
        ValueError: the user's own file cannot be read.
    """
    return chosen(device) if device.type == "cuda" else SMALL
