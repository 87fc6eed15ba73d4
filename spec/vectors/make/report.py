"""What a reader must report of a sound file, worked out from its description and not from its bytes."""

import struct
from typing import Any

from .bits import Spliced, align, digest
from .file import File
from .rebuild import first_chain, n_chains, n_rows, rebuild


def report(file: File, data: bytes, budgets: list[int], prefixes: list[int]) -> dict[str, Any]:
    """The facts of one file.

    Args:
        data: the bytes that it makes.
        budgets: what to plan for, besides the smallest budget, one byte less, and one byte more than everything.
        prefixes: numbers of blocks at which all tensors are rebuilt, besides the required and all available ones.
    """
    head = 128 + sum(int.from_bytes(data[at : at + 8], "little") for at in (32, 48))
    attachments = sum(len(item.bytes()) for item in file.external)
    first = align(head + attachments)
    required = file.raw_blocks() if file.required is None else file.required
    available = len(file.blocks) if file.present is None else file.present
    lengths = [len(block.data) for block in file.blocks]
    ends = [offset + len(file.stored(block)) for offset, block in zip(file.offsets(), file.blocks, strict=True)]
    smallest, total = sum(lengths[:required]), sum(lengths[:available])
    asked = dict.fromkeys([smallest - 1, smallest, *budgets, total, total + 1])
    return {
        "root": data[96:128].hex(),
        "version": f"{file.head.get('major', 1)}.{file.head.get('minor', 0 if file.volumes is None else 1)}",
        "writer": file.writer,
        "head_length": head,
        "blocks_offset": first,
        "file_length": first + ends[-1],
        "present_length": first + (ends[available - 1] if available else 0),
        "required_blocks": required,
        "available_blocks": available,
        "minimum_budget": smallest,
        "resident_bytes": total,
        "tensors": [_tensor(file, i) for i in range(len(file.tensors))],
        "aliases": file.aliases,
        "attachments": _attachments(file),
        "curves": file.curves,
        "extra": None if isinstance(file.extra, Spliced) else plain(file.extra),
        "blocks": [_block(file, i, first) for i in range(len(file.blocks))],
        "plans": [plan(budget, lengths, ends, required, available, first) for budget in asked],
        "rebuilt": [
            {"blocks": n, "tensors": {t["name"]: _rebuilt(file, i, n) for i, t in enumerate(file.tensors)}}
            for n in sorted({required, available, *prefixes})
        ],
    } | (_volumes(file, data, first, ends[-1]) if file.volumes is not None else {})


def _volumes(file: File, data: bytes, first: int, end: int) -> dict[str, Any]:
    """What the table says of each volume, the first one included, wherever the blocks lie."""
    maps, starts = file.volume_maps(), [first + offset for offset in file.offsets()]
    blocks = [0, *(item["first_block"] for item in maps), len(file.blocks)]
    cuts = [0, *(starts[item["first_block"]] for item in maps), first + end]
    names = [None, *(item["name"] for item in maps)]
    rows = zip(names, blocks, blocks[1:], cuts, cuts[1:], strict=False)
    volumes = [
        {"name": name, "first_block": a, "blocks": z - a, "offset": start, "length": stop - start}
        for name, a, z, start, stop in rows
    ]
    return {"object_length": len(data), "volumes": volumes}


def plain(value: Any) -> Any:
    """A value of ``extra`` in JSON: bytes as {"hex": …}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _tensor(file: File, number: int) -> dict[str, Any]:
    tensor = file.tensors[number]
    scales = {t[key] for t in file.tensors if "group_rows" in t for key in ("row_scale", "col_scale")}
    out = {
        "name": tensor["name"],
        "shape": tensor["shape"],
        "dtype": tensor["dtype"],
        "packed": "group_rows" in tensor,
        "scale_vector": number in scales,
        "first_chain": first_chain(file, number),
        "chains": n_chains(tensor),
    }
    if out["packed"]:
        out |= {key: tensor[key] for key in ("group_rows", "row_scale", "col_scale")}
        out["transposed"] = tensor.get("transposed", False)
    return out


def _attachments(file: File) -> list[dict[str, Any]]:
    content = file.inline | {item.name: item.data for item in file.external}
    names = [record["name"] for record in file.meta()["attachments"]]
    return [{"name": name, "length": len(content[name]), "blake3": digest(content[name]).hex()} for name in names]


def _block(file: File, number: int, first: int) -> dict[str, Any]:
    block = file.blocks[number]
    owner = max(i for i in range(len(file.tensors)) if first_chain(file, i) <= block.chain)
    tensor, form = file.tensors[owner], file.forms[block.form]
    row = (block.chain - first_chain(file, owner)) * tensor.get("group_rows", 0)
    rows = min(tensor["group_rows"], n_rows(tensor) - row) if "group_rows" in tensor else None
    stored = file.stored(block)
    return {
        "tensor": tensor["name"],
        "chain": block.chain,
        "first_row": row,
        "rows": rows,
        "level": block.level,
        "kind": form["kind"],
        "codec": form["codec"],
        "rank": form.get("rank"),
        "factors": form.get("factors"),
        "offset": first + file.offsets()[number],
        "stored": len(stored),
        "length": len(block.data),
        "worth": struct.unpack("<f", struct.pack("<f", block.worth))[0],
        "digest": digest(stored).hex(),
    }


def plan(budget: int, lengths: list[int], ends: list[int], required: int, available: int, first: int) -> dict[str, Any]:
    """§7.3: the answer to one budget, or its reason code."""
    if budget < 0:
        return {"budget": budget, "reason": "budget-invalid"}
    if budget < sum(lengths[:required]):
        return {"budget": budget, "reason": "budget-too-small", "minimum": sum(lengths[:required])}
    n = max(n for n in range(available + 1) if sum(lengths[:n]) <= budget)
    return {
        "budget": budget,
        "blocks": n,
        "resident_bytes": sum(lengths[:n]),
        "offset": first,
        "length": ends[n - 1] if n else 0,
    }


def _rebuilt(file: File, number: int, blocks: int) -> dict[str, Any]:
    data, shape = rebuild(file, number, blocks)
    return {"shape": shape, "bytes": len(data), "blake3": digest(data).hex()}
