"""Where a baseline wins, and by how much: each one beside the .bstk at the same bytes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def put_beside(baselines: Sequence[dict[str, Any]], ours: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every baseline point with ``ours``, the point of the .bstk at these bytes (None: it has no model so small).

    ``advantage`` says for each text by what share the baseline's perplexity is above ours: negative where it wins.
    """
    out = []
    for point in baselines:
        here = ours.get(point["resident_bytes"])
        advantage = None
        if here is not None:
            advantage = {
                text: _share(value, here["perplexity_by_text"][text])
                for text, value in point["perplexity_by_text"].items()
            }
        out.append(point | {"ours": here, "advantage": advantage})
    return out


def baseline_wins(baselines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each text on which a baseline has the lower perplexity at its bytes, and by what share of ours it is lower."""
    keys = ("name", "bits", "group_size", "embeddings", "resident_bytes")
    return [
        {key: point[key] for key in keys} | {"text": text, "lower_by": -share}
        for point in baselines
        for text, share in (point["advantage"] or {}).items()
        if share < 0
    ]


def _share(baseline: float, ours: float) -> float:
    if math.isinf(ours):
        return 0.0 if math.isinf(baseline) else -1.0
    return baseline / ours - 1
