"""What the head of a file says, as plain values: the JSON of ``bstk inspect`` and the numbers of its page."""

from typing import Any

import numpy as np
import numpy.typing as npt

from bsformat import Container, Curve, Plan

from .curve import Point, QualityCurve

Ints = npt.NDArray[np.int64]


def parameters(container: Container) -> int:
    """Elements of all tensors of the model."""
    return sum(t.rows * t.columns for t in container.model_tensors.values())


def bits_per_parameter(container: Container, resident: int) -> float:
    """Resident bits for each element of the model."""
    return 8 * resident / max(parameters(container), 1)


def perplexity_record(container: Container) -> Curve | None:
    """The first curve of the metric perplexity."""
    return next((c for c in container.metadata.curves if c.metric == "perplexity"), None)


def quality_curve(container: Container) -> QualityCurve:
    """Its points over resident bytes, as far as the file holds their blocks; without points if there is no curve."""
    record = perplexity_record(container)
    points = record.points if record else ()
    return QualityCurve(
        Point(container.planner.resident_bytes(n), value) for n, value in points if n <= container.available_blocks
    )


def group_names(container: Container) -> list[str]:
    """For each block what it is: ``raw``, ``scales``, or its kind and level."""
    scales = {k for t in container.tensors if t.packed for k in (t.row_scale, t.col_scale)}
    kinds = [form.kind for form in container.metadata.forms]
    tensor = tensor_numbers(container).tolist()
    rows = zip(container.index.form.tolist(), container.index.level.tolist(), tensor, strict=True)
    return [
        f"{kinds[form]} level {level}" if container.tensors[number].packed else "scales" if number in scales else "raw"
        for form, level, number in rows
    ]


def tensor_numbers(container: Container) -> Ints:
    """For each block the number of its tensor."""
    numbers: Ints = container.chains.tensor[container.index.chain.astype(np.int64)].astype(np.int64)
    return numbers


def groups(container: Container) -> list[dict[str, Any]]:
    """Blocks by kind and level: how many, and their bytes."""
    out: dict[str, dict[str, Any]] = {}
    lengths, stored = container.index.length.tolist(), container.index.stored.tolist()
    for name, length, size in zip(group_names(container), lengths, stored, strict=True):
        group = out.setdefault(name, {"blocks": name, "count": 0, "resident_bytes": 0, "file_bytes": 0})
        group["count"] += 1
        group["resident_bytes"] += length
        group["file_bytes"] += size
    return [out[name] for name in sorted(out, key=_by_level)]


def _by_level(name: str) -> tuple[int, str]:
    kind, _, level = name.partition(" level ")
    return (int(level), kind) if level else (-1, kind)


def levels_held(container: Container, n_blocks: int) -> dict[int, int]:
    """How many chains hold how many levels with the first ``n_blocks`` blocks resident."""
    packed = np.array([t.packed for t in container.tensors], bool)
    chain = container.index.chain[:n_blocks].astype(np.int64)
    held = np.bincount(chain, minlength=container.metadata.n_chains)
    counts = np.bincount(held[packed[container.chains.tensor]])
    return {level: int(count) for level, count in enumerate(counts) if count}


def curves(container: Container) -> list[dict[str, Any]]:
    """Every curve, with the bytes of each point; null where this prefix file ends before it."""
    out = []
    for curve in container.metadata.curves:
        points = []
        for n, value in curve.points:
            plan = container.planner.prefix(n) if n <= container.available_blocks else None
            points.append(
                {
                    "n_blocks": n,
                    "resident_bytes": plan.resident_bytes if plan else None,
                    "file_bytes": plan.offset + plan.length if plan else None,
                    "value": value,
                }
            )
        out.append(
            {
                "metric": curve.metric,
                "text": curve.text,
                "tokens": curve.tokens,
                "window": curve.window,
                "dense": curve.dense,
                "points": points,
            }
        )
    return out


def _tensors(container: Container) -> list[dict[str, Any]]:
    number = tensor_numbers(container)
    count = len(container.tensors)
    blocks = np.bincount(number, minlength=count)
    resident, stored, levels = (np.zeros(count, np.int64) for _ in range(3))
    np.add.at(resident, number, container.index.length.astype(np.int64))
    np.add.at(stored, number, container.index.stored.astype(np.int64))
    np.maximum.at(levels, number, container.index.level.astype(np.int64) + 1)
    scales = {k for t in container.tensors if t.packed for k in (t.row_scale, t.col_scale)}
    out = []
    for i, t in enumerate(container.tensors):
        item: dict[str, Any] = {
            "name": t.name,
            "role": "packed" if t.packed else "scale" if i in scales else "raw",
            "shape": list(t.shape),
            "dtype": t.dtype,
            "blocks": int(blocks[i]),
            "resident_bytes": int(resident[i]),
            "file_bytes": int(stored[i]),
            "dense_bytes": t.dense_bytes,
        }
        if t.packed:
            item |= {
                "levels": int(levels[i]),
                "chains": t.n_chains,
                "group_rows": t.group_rows,
                "transposed": t.transposed,
                "row_scale": container.tensors[t.row_scale].name,
                "col_scale": container.tensors[t.col_scale].name,
            }
        out.append(item)
    return out


def describe(container: Container) -> dict[str, Any]:
    """Everything that the head says."""
    head, meta = container.superblock, container.metadata
    return {
        "file": container.uri,
        "root": container.root,
        "format_version": container.version,
        "writer": meta.writer,
        "parameters": parameters(container),
        "size": container.size,
        "present_bytes": head.present_length,
        "head_bytes": head.head_length,
        "attachment_bytes": head.attachments_length,
        "blocks_offset": head.blocks_offset,
        "dense_bytes": container.dense_bytes,
        "minimum_bytes": container.minimum_bytes,
        "total_bytes": container.total_bytes,
        "bits_per_parameter": bits_per_parameter(container, container.total_bytes),
        "n_blocks": len(container),
        "available_blocks": container.available_blocks,
        "required_blocks": container.index.required,
        "groups": groups(container),
        "volumes": [volume.to_json() for volume in container.volumes],
        "attachments": [
            {"name": a.name, "length": a.length, "stored": len(a.data) if a.data is not None else a.stored}
            for a in meta.attachments
        ],
        "aliases": dict(meta.aliases),
        "curves": curves(container),
        "tensors": _tensors(container),
        "extra": dict(meta.extra),
        "fits": [fit(container, container.plan(f"{share}%"), f"{share}%") for share in shares(container)],
    }


def shares(container: Container) -> list[int]:
    """Percentages of all blocks that are budgets of this file, for a first look."""
    lowest = 100 * container.minimum_bytes / max(container.total_bytes, 1)
    return [share for share in (10, 20, 30, 40, 50, 60, 80, 100) if share >= lowest]


def fit(container: Container, plan: Plan, budget: str) -> dict[str, Any]:
    """A plan with what it means: bits, bytes to read, levels held and the perplexity to expect."""
    record = perplexity_record(container)
    expected = quality_curve(container).at(plan.resident_bytes)
    return {
        "budget": budget,
        "plan": plan.to_json(),
        "download_bytes": container.superblock.head_length + plan.length,
        "bits_per_parameter": bits_per_parameter(container, plan.resident_bytes),
        "levels": levels_held(container, plan.n_blocks),
        "perplexity": {"expected": expected, "text": record.text, "dense": record.dense} if record else None,
    }
