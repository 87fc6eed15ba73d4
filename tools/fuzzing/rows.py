"""Mutations of the index and of the blocks, and what makes the blocks fit a changed head again."""

from collections.abc import Callable
from random import Random
from typing import Any, Final

from bsformat import BstkError, metadata_reader, payload
from bsformat.chains import Chains

from .parts import COLUMNS, MAX_SECTION, Map, Parts, Row, compress, decompress, packed
from .trees import NUMBERS

_WIDTHS: Final = {"offset": 64, "stored": 64, "length": 64, "chain": 32, "level": 16, "form": 16}
_WORTHS: Final = (0.0, -0.0, -1.0, 1e38, float("inf"), float("-inf"), float("nan"), 1e-45)
#: Bytes of numbers that are not finite, of bits at the ends, of offsets at their bounds.
_PATTERNS: Final = (
    *(
        b"\0\x7c",
        b"\0\xfc",
        b"\x01\x7e",
        b"\x7f",
        b"\xff",
        b"\x80",
        b"\0\0\x80\x7f",
        b"\0\0\xc0\x7f",
        b"\xff\xff\xff\xff",
    ),
    *(b"\0\0\0\x80", b"\0", b"\x01", b"\xff\xff", b"\0\x80", b"\xfe\x7f", b"\0\0\x80\xff", b"\xff\x7b"),
)

Bytes = Callable[[bytes], bytes]


def mutate_index(parts: Parts, random: Random) -> None:
    """Force a cell, or change the rows."""
    rows = parts.rows
    kind = random.randrange(8)
    if not rows or kind == 0:
        parts.count = random.choice((0, len(rows) + 1, len(rows) - 1, 1 << 22, (1 << 22) + 1, (1 << 64) - 1, 1 << 58))
        parts.count %= 1 << 64
        return
    row = random.choice(rows)
    if kind <= 3:
        name = random.choice(list(COLUMNS))
        if name == "digest":
            row.forced[name] = random.choice((bytes(32), random.choice(rows).cells[name], random.randbytes(32)))
        elif name == "worth":
            row.forced[name] = random.choice(_WORTHS)
        else:
            near = row.cells[name] + random.choice((-64, -1, 1, 64, len(rows)))
            number = random.choice((near, near, random.choice(NUMBERS), random.choice(rows).cells[name]))
            row.forced[name] = number % (1 << _WIDTHS[name])
    elif kind == 4:
        parts.required = random.choice((0, len(rows), len(rows) + 1, parts.required + 1, parts.required - 1, 1 << 63))
        parts.required %= 1 << 64
    elif kind == 5:
        i, j = random.randrange(len(rows)), random.randrange(len(rows))
        rows[i], rows[j] = rows[j], rows[i]
    elif kind == 6:
        rows.insert(random.randrange(len(rows) + 1), Row(dict(row.cells), row.data))
    else:
        rows.remove(row)


def add_level(parts: Parts, random: Random) -> None:
    """One block more at the end of a chain, of some form, then all blocks made to fit."""
    if not parts.rows or parts.tree is None:
        return
    row = random.choice(parts.rows)
    forms = parts.tree.get("forms")
    last = max(r.cells["level"] for r in parts.rows if r.cells["chain"] == row.cells["chain"])
    new = Row(dict(row.cells), row.data)
    new.cells |= {
        "level": min(last + 1, 65535),
        "form": random.randrange(max(1, len(forms) if isinstance(forms, list) else 1)),
    }
    parts.rows.append(new)
    fit(parts, random)


def mutate_block(parts: Parts, random: Random, bytes_of: Bytes) -> None:
    """Change the payload of a block, before compression where it is compressed."""
    if not parts.rows:
        return
    row = random.choice(parts.rows)
    inner = decompress(row.data) if row.data[:4] == b"\x28\xb5\x2f\xfd" and random.random() < 0.8 else None
    data = row.data if inner is None else inner
    if random.random() < 0.6:
        for _ in range(random.choice((1, 1, 2, 4))):
            pattern = random.choice(_PATTERNS)
            at = random.randrange(len(data) + 1) // (len(pattern) if random.random() < 0.7 else 1) * len(pattern)
            data = (data[:at] + pattern + data[at + len(pattern) :])[: len(data)]
    else:
        changed = bytes_of(data)
        data = (changed + data[len(changed) :])[: len(data)] if random.random() < 0.8 else changed
    row.data = data if inner is None else compress(data)


def fit(parts: Parts, random: Random) -> None:
    """Cut or fill each block to what its form and tensor make, where the metadata can be read."""
    if parts.tree is None:
        return
    try:
        meta = metadata_reader.decode(packed(parts.tree), "")
        chains = Chains(meta)
    except BstkError:
        return
    for row in parts.rows:
        chain, number = row.cells["chain"], row.cells["form"]
        if chain >= meta.n_chains or number >= len(meta.forms):
            continue
        form, part = meta.forms[number], chains.at(chain)
        tensor = meta.tensors[int(part.tensor)]
        data = decompress(row.data) if row.data[:4] == b"\x28\xb5\x2f\xfd" else row.data
        data = row.data if data is None else data
        if (form.kind == "raw") is tensor.packed:
            continue
        length = payload.length(form, tensor, int(part.rows), len(data))
        if not 0 < length <= MAX_SECTION:
            continue
        data = (data * (length // max(1, len(data)) + 1))[:length] if data else bytes(length)
        row.cells["length"] = length
        row.data = compress(data) if form.codec == "zstd" else data


def reshape(parts: Parts, random: Random) -> None:
    """Another shape, grouping or type of a tensor, its scales along with it, then all blocks made to fit."""
    tensors = parts.tree.get("tensors") if parts.tree is not None else None
    items = [t for t in tensors if isinstance(t, Map)] if isinstance(tensors, list) else []
    if not items or not isinstance(tensors, list):
        return
    item = random.choice(items)
    sizes: tuple[Any, ...] = (1, 1, 2, 3, 7, 8, 9, 16, 63, 64, 65, 130)
    shape = [random.choice(sizes) for _ in range(random.choice((1, 2, 2, 2, 3)))]
    if item.get("group_rows") is not None:
        shape = shape if len(shape) > 1 else [*shape, 5]
        rows = 1
        for size in shape[:-1]:
            rows *= size
        if rows > 1024:
            return
        item.put("group_rows", random.choice((1, rows, max(1, rows // 2), rows + 1)))
        for key, of in (("row_scale", [rows]), ("col_scale", [shape[-1]])):
            number = item.get(key)
            if type(number) is int and 0 <= number < len(tensors) and isinstance(tensors[number], Map):
                tensors[number].put("shape", of)
    item.put("shape", shape)
    if random.random() < 0.3:
        item.put("dtype", random.choice(("F64", "F32", "F16", "BF16", "I8", "BOOL", "F8_E4M3")))
    fit(parts, random)


def reform(parts: Parts, random: Random) -> None:
    """Another kind, codec, rank or type of factors of a form, then all blocks made to fit."""
    forms = parts.tree.get("forms") if parts.tree is not None else None
    items = [f for f in forms if isinstance(f, Map)] if isinstance(forms, list) else []
    if not items:
        return
    form = random.choice(items)
    kind = random.choice(("sign", "sign", "plane", "sparse", "lowrank", form.get("kind")))
    form[:] = [("kind", kind), ("codec", random.choice(("none", "none", "zstd")))]
    if kind in ("sign", "lowrank"):
        form += [("rank", random.choice((1, 2, 3, 8, 17))), ("factors", random.choice(("F16", "F8_E4M3")))]
    fit(parts, random)
