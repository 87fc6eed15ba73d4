"""What every kept measurement of kernels says about where it was taken."""

import importlib.metadata
import json
from typing import Any

import torch

from bitstack.tools.devices import hardware, versions


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, those of the compilers and of the libraries that are compared with too."""
    found = {}
    for name in ("triton", "bitsandbytes"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return {"hardware": hardware(device), "versions": versions() | found}


def printed(result: dict[str, Any]) -> str:
    """A result as JSON, every item of a list on one line."""
    parts = []
    for name, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
