"""Results of ``bstk eval`` that were kept as JSON, read back."""

import json
import os
from typing import Any

from bsformat.errors import ModelError


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One result; what an earlier version of the command did not write yet is filled in.

    Raises:
        ModelError: it cannot be read, or is no result of ``bstk eval``.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            result = json.load(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"no JSON that can be read ({error})", where=name, reason="result") from None
    if not isinstance(result, dict) or not {"file", "root", "text", "points", "hardware", "versions"} <= set(result):
        raise ModelError("is no result of bstk eval --json", where=name, reason="result")
    text = result["text"]["name"]
    points = [{"perplexity_by_text": {text: p["perplexity"]}} | p for p in result["points"]]
    absent: dict[str, Any] = {"texts": [result["text"]], "model": os.path.basename(result["file"]), "dtype": None}
    absent |= {"zero_shot": None, "compare": {}, "dense": None, "calibration": None}
    absent |= {"baselines": [], "baseline_wins": [], "skipped": []}
    return absent | result | {"points": points}


def label(point: dict[str, Any]) -> str:
    """A point of a baseline or of the dense model, for people: ``rtn 4 bits, embeddings 16``."""
    if "bits" not in point:
        return str(point["name"])
    embeddings = point["bits"] if point["embeddings"] == "same" else point["embeddings"]
    return f"{point['name']} {point['bits']} bits, embeddings {embeddings}"
