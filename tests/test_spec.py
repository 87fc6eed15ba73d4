"""The specification against the code: its tables, its registry of reason codes, and its worked example.

The second half is a reader written from `spec/bstk-v1.md` alone, with nothing of bsformat in it. It must read the
example to the values printed there, and agree with bsformat about which damaged variants of it are refused.
"""

import ast
import importlib.util
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import blake3
import msgpack
import numpy as np
import pytest
import zstandard

import bsformat
from bsformat import MemorySource, errors, head, index, metadata, payload, registry, sparse, superblock
from bsformat.errors import BstkError
from bsformat.rebuild import chain_values

# ------------------------------------------------------------------------------------------------ the text


@pytest.fixture(scope="module")
def text(repo_root: Path) -> str:
    return (repo_root / "spec" / "bstk-v1.md").read_text(encoding="utf-8")


def part(text: str, number: str) -> str:
    """One section of the text by its number, sub-sections included."""
    level = "#" * (2 + number.count("."))
    match = re.search(rf"^{level} {re.escape(number)} .*?(?=^#{{2,{len(level)}}} |\Z)", text, re.M | re.S)
    assert match, f"the specification has no section {number}"
    return match[0]


def rows(text: str, after: str = "") -> list[list[str]]:
    """The cells of all tables in ``text``; with ``after``, of the first table that follows that line."""
    if after:
        text = text[text.index(f"\n{after}\n") + len(after) + 2 :]
        match = re.search(r"(^\|.*\n)+", text, re.M)
        assert match
        text = match[0]
    lines = re.findall(r"^\|(.*)\|$", text, re.M)
    return [[cell.strip() for cell in line.split("|")] for line in lines if not set(line) <= set("-| ")]


def codes(table: list[list[str]]) -> dict[str, list[str]]:
    """Rows whose first cell is one name in backticks: name -> the other cells."""
    found = [(row[0].strip("`"), row[1:]) for row in table if re.fullmatch(r"`[^`]+`", row[0])]
    assert len({name for name, _ in found}) == len(found), "a name stands twice"
    return dict(found)


def number(cell: str) -> int:
    base, _, power = cell.partition("^")
    return int(base) ** int(power or 1)


@pytest.fixture(scope="module")
def example(text: str) -> str:
    return text.split("<!-- example -->\n")[1].split("<!-- /example -->")[0]


def parse_dump(example: str) -> tuple[bytes, dict[str, bytes]]:
    """The bytes of the dump, and each annotated piece of it by its note."""
    dump = example.split("```text example-bytes\n")[1].split("```")[0]
    data, pieces, note = b"", {}, ""
    for line in dump.splitlines():
        match = re.fullmatch(r"([0-9a-f]{8})  ((?:[0-9a-f]{2} ?)+) *; +(.*)", line)
        assert match, f"not a line of a dump: {line!r}"
        assert int(match[1], 16) == len(data)
        piece = bytes.fromhex(match[2])
        assert len(piece) <= 16
        note = note if match[3] == "..." else match[3]
        pieces[note] = (pieces.get(note, b"") if match[3] == "..." else b"") + piece
        data += piece
    return data, pieces


@pytest.fixture(scope="module")
def data(example: str) -> bytes:
    return parse_dump(example)[0]


def printed_values(example: str, blocks: int, kind: str) -> list[list[float]]:
    block = example.split(f"```text example-values w {blocks} {kind}\n")[1].split("```")[0]
    return [[float(v) for v in line.split()] for line in block.splitlines()]


@pytest.fixture(scope="module")
def script(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("spec_example", repo_root / "spec" / "example.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_links_of_the_contents_and_all_section_references_lead_somewhere(text: str, repo_root: Path) -> None:
    def slug(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")

    headings = re.findall(r"^#{2,3} (.*)$", text, re.M)
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= {slug(h) for h in headings}
    numbers = {h.split()[0] for h in headings}
    sources = [text, *(p.read_text(encoding="utf-8") for p in (repo_root / "bsformat").glob("*.py"))]
    cited = {n for source in sources for n in re.findall(r"§(\d+(?:\.\d+)?)", source)}
    assert cited
    assert cited <= numbers
    assert "RFC 2119" in text


# ------------------------------------------------------------------------------------------------ tables


def trees(repo_root: Path) -> list[ast.Module]:
    return [ast.parse(p.read_text(encoding="utf-8")) for p in sorted((repo_root / "bsformat").glob("*.py"))]


def strings(node: ast.AST | None) -> Iterator[str]:
    """String constants that an expression can be: itself, or either side of a conditional."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from strings(value)


def raised_reasons(modules: list[ast.Module]) -> set[str]:
    """Constants given to a parameter called ``reason``, by name or place, its defaults, and ``default_reason``."""
    found: set[str] = set()
    place: dict[str, int] = {}
    for node in (n for module in modules for n in ast.walk(module)):
        if isinstance(node, ast.FunctionDef):
            names = [a.arg for a in node.args.args]
            if "reason" in names:
                place[node.name] = names.index("reason") - (names[0] in ("self", "cls"))
                defaults = dict(zip(reversed(names), reversed(node.args.defaults), strict=False))
                found.update(strings(defaults.get("reason")))
    for node in (n for module in modules for n in ast.walk(module)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in place and len(node.args) > place[name]:
                found.update(strings(node.args[place[name]]))
            for keyword in node.keywords:
                if keyword.arg == "reason":
                    found.update(strings(keyword.value))
        elif isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "default_reason" for t in node.targets):
            found.update(strings(node.value))
    return found


def test_every_reason_that_the_code_raises_is_registered_and_the_other_way_round(text: str, repo_root: Path) -> None:
    raised = raised_reasons(trees(repo_root))
    assert {"index-order", "metadata-value", "attachment-codec", "disk-full", "error"} <= raised  # one of each way
    registered = codes(rows(part(text, "9")))
    assert set(registered) == raised
    for table in ("7.1", "7.4"):
        for code in re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", part(text, table)):
            assert code in registered


def test_the_walk_over_reasons_finds_every_way_to_give_one() -> None:
    tree = ast.parse(
        "def bad(message, reason='a-default'): ...\nclass M:\n  def bar(self, message, reason): ...\n"
        "bad('x'); bad('x', 'b'); bad('x', reason='c' if y else 'd'); m.bar('x', 'e')\n"
        "class E:\n  default_reason = 'f'\n"
    )
    assert raised_reasons([tree]) == {"a-default", "b", "c", "d", "e", "f"}


def test_every_error_class_has_a_registered_general_reason(text: str) -> None:
    registered = codes(rows(part(text, "9")))
    for name in errors.__all__:
        assert getattr(errors, name).default_reason in registered


def test_constants(text: str) -> None:
    stated = {name: number(cells[0]) for name, cells in codes(rows(part(text, "3")) + rows(part(text, "7.6"))).items()}
    actual = {k: v for k, v in vars(registry).items() if k.isupper() and isinstance(v, int)}
    assert stated == actual


def test_registries(text: str) -> None:
    features = {int(r[0]): r[1].strip("`") for r in rows(part(text, "3")) if r[0].isdigit()}
    assert features == dict(registry.MUST_FEATURES)
    types = codes(rows(part(text, "8.1")))
    assert {name: int(cells[0]) for name, cells in types.items()} == dict(registry.DTYPE_BYTES)
    for column, names in (
        (2, registry.FLOAT_DTYPES),
        (3, registry.SCALE_DTYPES),
        (4, registry.FACTOR_DTYPES),
    ):
        assert {name for name, cells in types.items() if cells[column] == "yes"} == names
    assert tuple(codes(rows(part(text, "8.2")))) == registry.KINDS
    assert tuple(codes(rows(part(text, "8.3")))) == registry.CODECS
    collections = {k for k, v in vars(registry).items() if k.isupper() and not isinstance(v, int)}
    assert collections == {"MUST_FEATURES", "DTYPE_BYTES", "FLOAT_DTYPES", "SCALE_DTYPES", "FACTOR_DTYPES"} | {
        "KINDS",
        "CODECS",
    }


def test_the_table_of_e4m3(text: str) -> None:
    for code in range(256):
        assert np.array_equal(np.float64(e4m3(code)), payload.E4M3[code], equal_nan=True)
    assert e4m3(0x7E) == 448
    assert e4m3(0x38) == 1
    assert e4m3(1) == 2.0**-9


def test_the_table_of_the_superblock(text: str) -> None:
    table = [r for r in rows(part(text, "2")) if r[0].isdigit()]
    ends = [int(r[0]) + int(r[1]) for r in table]
    assert [int(r[0]) for r in table] == [0, *ends[:-1]]
    assert ends[-1] == superblock.SIZE
    at = {r[2].strip("`"): (int(r[0]), int(r[1])) for r in table}
    assert bytes.fromhex(table[0][4].strip("`")) == superblock.MAGIC
    # A value of its own for every field, and then each where the table says.
    fields = ("major", "minor", "must", "may", "metadata_stored", "metadata_length", "index_stored", "index_length")
    fields += ("attachments_length", "file_length", "present_length", "object_length")
    values = {name: 1000 + i for i, name in enumerate(fields)}
    block = superblock.Superblock(**values, root=bytes(range(32)))
    data = block.encode()
    assert set(at) == {*fields, "magic", "superblock_size", "root"}
    for name, value in {**values, "superblock_size": superblock.SIZE}.items():
        offset, size = at[name]
        assert int.from_bytes(data[offset : offset + size], "little") == value, name
    assert data[at["root"][0] :] == bytes(range(32))
    assert block.identity() == data[: at["present_length"][0]] == data[:80]


def test_the_table_of_the_index(text: str) -> None:
    table = codes(rows(part(text, "5")))
    kinds = {"u64": "<u8", "u32": "<u4", "u16": "<u2", "f32": "<f4", "bytes": "V32"}
    columns = [(name, kinds[cells[1]]) for name, cells in table.items() if name not in ("count", "required")]
    assert tuple(columns) == index.COLUMNS
    assert [int(table[name][0]) for name, _ in index.COLUMNS] == [np.dtype(k).itemsize for _, k in index.COLUMNS]
    assert f"takes {index.ROW_BYTES} bytes" in part(text, "5")


@pytest.mark.parametrize(
    ("function", "headings"),
    [
        ("decode", ["Metadata map:"]),
        ("_tensor", ["Tensor map:"]),
        ("_form", ["Form map:"]),
        ("_attachment", ["Attachment map, inline:", "Attachment map, external:"]),
        ("_volume", ["Volume map:"]),
        ("_curve", ["Curve map: a quality curve that was measured on this file."]),
    ],
)
def test_metadata_keys(text: str, repo_root: Path, function: str, headings: list[str]) -> None:
    tree = ast.parse((repo_root / "bsformat" / "metadata_reader.py").read_text(encoding="utf-8"))
    (body,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    accepted, optional = set(), set()
    for node in ast.walk(body):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in ("take", "integer", "name") and node.args:
            (key,) = strings(node.args[0])
            accepted.add(key)
            if any(k.arg == "optional" for k in node.keywords):
                optional.add(key)
    stated = {k: v for heading in headings for k, v in codes(rows(part(text, "4"), heading)).items()}
    assert set(stated) == accepted
    assert {key for key, cells in stated.items() if cells[-1] != "\N{EN DASH}"} == optional


def test_the_changelog_names_the_current_version(repo_root: Path) -> None:
    changelog = (repo_root / "spec" / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+)\.(\d+)", changelog, re.M)
    assert newest
    assert (int(newest[1]), int(newest[2])) == (registry.MAJOR, registry.MINOR)


# ------------------------------------------------------------------------------------------------ the example


def test_the_example_is_what_its_script_prints(example: str, script: ModuleType, data: bytes) -> None:
    # Its zstd frames are made by hand, so that this does not depend on the version of a library.
    assert script.build() == data
    assert script.section() == example


def test_bsformat_finds_what_the_example_states(example: str, data: bytes) -> None:
    root = {r[0]: r[1] for r in rows(example)}["root"]
    assert bsformat.verify(MemorySource(data), root=root).ok
    with bsformat.open(MemorySource(data), root=root) as file:
        facts = {r[0]: r[1] for r in rows(example) if len(r) == 2 and r[0] != "fact"}
        plan = file.plan(120)
        assert facts == {
            "root": file.root,
            "head length": str(file.superblock.head_length),
            "first block": str(file.superblock.blocks_offset),
            "file length": str(len(data)),
            "blocks": str(len(file)),
            "required": str(file.index.required),
            "minimum budget": str(file.minimum_bytes),
            "resident bytes of all blocks": str(file.total_bytes),
            "budget 120: blocks": str(plan.n_blocks),
            "budget 120: resident bytes": str(plan.resident_bytes),
            "budget 120: range offset": str(plan.offset),
            "budget 120: range length": str(plan.length),
        }
        blocks = [r for r in rows(example) if len(r) == 10][1:]
        assert len(blocks) == len(file)
        for row, block in zip(blocks, map(file.block, range(len(file))), strict=True):
            assert row == [
                *map(str, (block.number, block.tensor.name, block.first_row, block.level, block.form.kind)),
                *map(str, (block.form.codec, block.offset, block.stored, block.length, block.worth)),
            ]


def test_the_notes_of_the_dump(example: str, data: bytes) -> None:
    _, pieces = parse_dump(example)
    with bsformat.open(MemorySource(data)) as file:
        for name in ("metadata_stored", "metadata_length", "index_stored", "index_length", "file_length"):
            value = getattr(file.superblock, name)
            assert int.from_bytes(pieces[f"{name} {value}"], "little") == value
        assert pieces["root"] == file.superblock.root
        for i in range(len(file)):
            assert pieces[f"digest[{i}]"] == file.block(i).digest
        level1 = pieces["block 5, chain 3 level 1: V [10 x 1]"]
        assert np.array_equal(
            payload.split(file.block(5).form, file.block(5).tensor, 2, file.read_block(5)).v.ravel(),
            np.frombuffer(level1, "<f2"),
        )
        assert file.attachment("config.json") == pieces["data: 21 bytes"][7:]


def bsformat_values(file: bsformat.Container, name: str, blocks: int) -> np.ndarray[Any, Any]:
    """A packed tensor in float64 as bsformat rebuilds it from a prefix."""
    tensors = list(file.tensors)
    tensor = next(t for t in tensors if t.name == name)

    def scales(i: int) -> np.ndarray[Any, Any]:
        block = int(np.flatnonzero(file.index.chain == tensors[i].first_chain)[0])
        return payload.as_float(np.frombuffer(file.read_block(block), np.uint8), tensors[i].dtype)

    row, column = scales(tensor.row_scale), scales(tensor.col_scale)
    out = []
    for chain in range(tensor.first_chain, tensor.first_chain + tensor.n_chains):
        held = [b for b in range(blocks) if file.index.chain[b] == chain]
        first, count = int(file.chains.first_row[chain]), int(file.chains.rows[chain])
        levels = [(file.block(b).form, file.read_block(b)) for b in held]
        out.append(chain_values(tensor, count, levels, row[first : first + count], column))
    return np.concatenate(out)


@pytest.mark.parametrize("blocks", [5, 6])
def test_bsformat_rebuilds_the_printed_values(example: str, data: bytes, blocks: int) -> None:
    with bsformat.open(MemorySource(data)) as file:
        values = bsformat_values(file, "w", blocks)
    assert values.tolist() == printed_values(example, blocks, "float64")
    assert values.astype(np.float16).astype(np.float64).tolist() == printed_values(example, blocks, "F16")


def test_the_writer_makes_a_file_of_the_same_content(example: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "example.bstk"
    with bsformat.open(MemorySource(data)) as file:
        with bsformat.Writer(path, file.tensors) as writer:
            for number in range(len(file)):
                writer.put(int(file.index.chain[number]), file.block(number).form, file.read_block(number))
            writer.attach("config.json", file.attachment("config.json"))
            order = [(int(file.index.chain[i]), float(file.index.worth[i])) for i in range(file.index.required, 6)]
            writer.finish(order, aliases=file.metadata.aliases)
        with bsformat.open(path) as again:
            # Compressed bytes depend on the library, and offsets on them: what they decode to is compared.
            assert again.tensors == file.tensors
            assert again.metadata.aliases == file.metadata.aliases
            assert again.attachment("config.json") == file.attachment("config.json")
            for name in ("length", "worth", "chain", "level"):
                assert getattr(again.index, name).tolist() == getattr(file.index, name).tolist()
            assert [again.read_block(i) for i in range(6)] == [file.read_block(i) for i in range(6)]
            assert bsformat_values(again, "w", 6).tolist() == printed_values(example, 6, "float64")


# ------------------------------------------------------------------------------------------------ a second reader
# From here to the tests of it: the specification and nothing else.


class Refused(Exception):
    pass


def need(fine: bool, reason: str) -> None:
    if not fine:
        raise Refused(reason)


def align(n: int) -> int:
    return (n + 63) // 64 * 64


def digest(data: bytes) -> bytes:
    return blake3.blake3(data).digest()


BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def e4m3(code: int) -> float:  # §8.1
    sign, e, m = (-1.0) ** (code >> 7), code >> 3 & 15, code & 7
    if e == 15 and m == 7:
        return float("nan")
    return sign * m * 2.0**-9 if e == 0 else sign * (8 + m) * 2.0 ** (e - 10)


def floats(data: bytes, dtype: str) -> list[float]:  # §8.1
    if dtype == "F8_E4M3":
        return [e4m3(code) for code in data]
    if dtype == "BF16":
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    letter = {"F64": "d", "F32": "f", "BF16": "f", "F16": "e"}[dtype]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data))


def finite(values: list[float]) -> bool:
    return all(v - v == 0 for v in values)


def zstd(data: bytes, length: int, reason: str) -> bytes:  # §8.3
    need(data[:4] == b"\x28\xb5\x2f\xfd", reason)
    try:
        frame = zstandard.get_frame_parameters(data)
        need(frame.content_size == length and frame.dict_id == 0, reason)
        out = zstandard.ZstdDecompressor().decompress(data, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError:
        raise Refused(reason) from None
    need(len(out) == length, reason)
    return out


def strict_msgpack(data: bytes) -> dict[str, Any]:  # §4.1
    def pairs(items: list[tuple[Any, Any]]) -> dict[str, Any]:
        need(all(isinstance(k, str) for k, _ in items), "metadata-msgpack")
        need(len({k for k, _ in items}) == len(items), "metadata-msgpack")
        return dict(items)

    def depth(value: Any) -> int:
        if isinstance(value, float):
            need(value - value == 0, "metadata-msgpack")
        if isinstance(value, (dict, list)):
            return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
        need(isinstance(value, (str, bytes, int, float, bool, type(None))), "metadata-msgpack")
        return 0

    try:
        value = msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=pairs)
    except (ValueError, msgpack.UnpackException):
        raise Refused("metadata-msgpack") from None
    need(isinstance(value, dict) and depth(value) <= 16, "metadata-msgpack")
    return dict(value)


INT: Callable[[Any], bool] = lambda v: type(v) is int  # noqa: E731
TEXT: Callable[[Any], bool] = lambda v: type(v) is str  # noqa: E731
FLOAT: Callable[[Any], bool] = lambda v: type(v) in (int, float)  # noqa: E731
LIST: Callable[[Any], bool] = lambda v: type(v) is list  # noqa: E731
MAP: Callable[[Any], bool] = lambda v: type(v) is dict  # noqa: E731


def keys(item: Any, types: Mapping[str, Callable[[Any], bool]], optional: tuple[str, ...] = ()) -> None:
    need(MAP(item), "metadata-value")
    need(set(item) <= set(types) and set(types) <= set(item) | set(optional), "metadata-key")
    for key, value in item.items():
        need(types[key](value), "metadata-value")


def name(value: Any) -> bool:
    return TEXT(value) and 1 <= len(value.encode()) <= 1024 and "\0" not in value


def between(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: INT(v) and low <= v <= high


def product(items: list[int]) -> int:
    out = 1
    for item in items:
        out *= item
    return out


class MiniReader:
    """Opens, plans, reads and rebuilds by §7 of the specification."""

    def __init__(self, data: bytes, demanded: str | None = None, others: Mapping[str, bytes] | None = None) -> None:
        self.data, self.others = data, others or {}
        if data[:10] != b"\x89BSTK\r\n\x1a\n\0"[: len(data)] or not data:
            need(bool(data), "truncated")
            raise Refused("bad-transfer" if b"BSTK" in data[:7] else "not-bstk")
        need(len(data) >= 128, "truncated")
        major, _, size, must = struct.unpack_from("<HHHQ", data, 10)
        need(major == 1, "version-unsupported")
        need(must in (0, 1), "feature-unsupported")
        ms, ml, xs, xl, attached, end, present, own = struct.unpack_from("<8Q", data, 32)
        fine = size == 128 and (must == 1 or own == 0) and end <= 1 << 62
        own = own if must else present
        fine = fine and ms <= 1 << 25 and ml <= min(1 << 25, 256 * ms + 65536)
        fine = fine and xs <= 1 << 30 and xl <= min(1 << 30, 256 * xs + 65536)
        self.head = 128 + ms + xs
        need(fine and self.head + attached <= end and self.head <= present <= end, "superblock-invalid")
        cut = own < present == end and own >= self.head + attached
        need(own == present or cut, "superblock-invalid")
        need(len(data) >= own, "truncated")
        need(len(data) <= own, "trailing-bytes")
        need(demanded is None or demanded == data[96:128].hex(), "root-mismatch")
        need(digest(data[:80] + data[128 : self.head]) == data[96:128], "head-digest")
        self.metadata(strict_msgpack(zstd(data[128 : 128 + ms], ml, "metadata-compression")), attached, must)
        self.first = align(self.head + attached)
        self.index(zstd(data[128 + ms : self.head], xl, "index-compression"), end)
        for c in self.m["curves"]:
            need(all(p[0] <= len(self.chain) for p in c["points"]), "metadata-value")
        self.available = sum(a + n <= present for a, n in zip(self.offset, self.stored, strict=True))
        firsts = [v["first_block"] for v in self.m.get("volumes", [])]
        need(not firsts or firsts[-1] < len(self.chain), "metadata-value")
        self.starts = [self.offset[b] for b in firsts] if cut else []
        need(not cut or own == self.starts[0], "superblock-invalid")
        last = self.offset[self.available - 1] + self.stored[self.available - 1] if self.available else self.first
        need(present == last and self.available >= self.required, "superblock-invalid")

    def metadata(self, m: dict[str, Any], attached: int, must: int) -> None:  # §4
        self.m = m
        top = {"writer": name, "tensors": LIST, "forms": LIST, "aliases": MAP, "attachments": LIST, "curves": LIST}
        keys(m, {**top, "extra": MAP, **({"volumes": LIST} if must else {})})
        self.volumes(m.get("volumes", [{"name": "x", "first_block": 0}]))
        dimension = between(1, (1 << 40) - 1)
        for t in m["tensors"]:
            types = {"name": name, "shape": LIST, "dtype": lambda v: TEXT(v) and v in BYTES}
            if MAP(t) and "group_rows" in t:
                types |= {"group_rows": between(1, 1 << 40), "transposed": lambda v: type(v) is bool}
                types |= {"row_scale": between(0, 1 << 30), "col_scale": between(0, 1 << 30)}
            keys(t, types, ("transposed",))
            shape = t["shape"]
            need(len(shape) <= 8 and all(map(dimension, shape)) and product(shape) <= 1 << 40, "metadata-value")
            if "group_rows" in t:
                need(t["dtype"] in ("F64", "F32", "F16", "BF16") and len(shape) >= 2, "metadata-value")
                need(t["group_rows"] <= product(shape[:-1]), "metadata-value")
        self.chains: list[tuple[int, int, int]] = []  # tensor, first row, rows
        for i, t in enumerate(m["tensors"]):
            count = product(t["shape"][:-1])
            group = t.get("group_rows", count)
            need(len(self.chains) + -(-count // group) <= 1 << 22, "metadata-value")
            self.chains += [(i, a, min(group, count - a)) for a in range(0, count, group)]
        names = [t["name"] for t in m["tensors"]]
        need(len({*names, *m["aliases"]}) == len(names) + len(m["aliases"]), "metadata-duplicate")
        for alias, target in m["aliases"].items():
            need(name(alias) and TEXT(target) and target in names, "metadata-value")
        self.scales: set[int] = set()
        for t in (t for t in m["tensors"] if "group_rows" in t):
            count, columns = product(t["shape"][:-1]), t["shape"][-1]
            groups = -(-count // t["group_rows"])
            for key, shapes in (("row_scale", [[count]]), ("col_scale", [[columns], [groups, columns]])):
                need(t[key] < len(names), "metadata-value")
                vector = m["tensors"][t[key]]
                need("group_rows" not in vector and vector["shape"] in shapes, "metadata-value")
                need(vector["dtype"] in ("F32", "F16", "BF16"), "metadata-value")
                self.scales.add(t[key])
        for f in m["forms"]:
            need(MAP(f) and f.get("codec") in ("none", "zstd"), "codec-unknown")
            need(f.get("kind") in ("raw", "sign", "plane", "sparse", "lowrank"), "kind-unknown")
            more = {"rank": between(1, 1 << 12), "factors": lambda v: v in ("F16", "F8_E4M3")}
            keys(f, {"kind": TEXT, "codec": TEXT, **(more if f["kind"] in ("sign", "lowrank") else {})})
        self.attachments(m["attachments"], attached)
        for c in m["curves"]:
            types = {"metric": name, "text": TEXT, "tokens": between(0, 1 << 50), "window": between(0, 1 << 50)}
            keys(c, {**types, "dense": FLOAT, "points": LIST})
            for p in c["points"]:
                need(LIST(p) and len(p) == 2 and between(0, 1 << 22)(p[0]) and FLOAT(p[1]), "metadata-value")
            counts = [p[0] for p in c["points"]]
            need(counts == sorted(set(counts)), "metadata-value")

    def attachments(self, items: list[Any], attached: int) -> None:  # §4.5
        at = 0
        for a in items:
            types: dict[str, Callable[[Any], bool]] = {"name": name, "length": between(0, 1 << 30)}
            if MAP(a) and "data" in a:
                keys(a, {**types, "data": lambda v: type(v) is bytes})
                need(len(a["data"]) == a["length"], "metadata-value")
            else:
                types |= {"codec": TEXT, "digest": lambda v: type(v) is bytes and len(v) == 32}
                keys(a, {**types, "offset": between(0, 1 << 62), "stored": between(1, 1 << 30)})
                need(a["codec"] in ("none", "zstd"), "codec-unknown")
                limit = 256 * a["stored"] + 65536
                fine = a["length"] == a["stored"] if a["codec"] == "none" else a["length"] <= limit
                need(fine, "metadata-value")
                need(a["offset"] == at, "attachment-offset")
                at += a["stored"]
            parts = a["name"].split("/")
            need(not {"", ".", ".."} & set(parts) and not set("\\:") & set(a["name"]), "metadata-name")
        need(at == attached, "attachment-offset")
        need(len({a["name"] for a in items}) == len(items), "metadata-duplicate")

    def volumes(self, items: list[Any]) -> None:  # §4.8
        need(1 <= len(items) <= 1 << 16, "metadata-value")
        for v in items:
            keys(v, {"name": TEXT, "first_block": between(0, 1 << 22)})
            fine = re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", v["name"]) is not None
            need(fine, "metadata-name")
        firsts = [v["first_block"] for v in items]
        need(firsts == sorted(set(firsts)), "metadata-value")
        need(len({v["name"].lower() for v in items}) == len(items), "metadata-duplicate")

    def join(self) -> None:  # §7.7
        ends = [*self.starts[1:], self.offset[-1] + self.stored[-1]]
        for v, start, end in zip(self.m["volumes"], self.starts, ends, strict=True):
            need(v["name"] in self.others, "volume-missing")
            data = self.others[v["name"]]
            need(len(data) >= end - start, "volume-truncated")
            need(len(data) <= end - start, "volume-trailing-bytes")
            self.data += data
        self.starts = []

    def index(self, data: bytes, end: int) -> None:  # §5
        need(len(data) >= 16, "index-length")
        n, self.required = struct.unpack_from("<QQ", data)
        need(1 <= n <= 1 << 22 and self.required <= n and len(data) == 16 + 68 * n, "index-length")
        at, columns = 16, []
        for letter in ("Q", "Q", "Q", "32s", "f", "I", "H", "H"):
            size = struct.calcsize(letter)
            columns.append([struct.unpack_from("<" + letter, data, at + i * size)[0] for i in range(n)])
            at += n * size
        offset, self.stored, self.length, self.digest, self.worth, self.chain, self.level, self.form = columns
        self.offset = [self.first + o for o in offset]
        expected, seen, raw_done = 0, dict.fromkeys(range(len(self.chains)), 0), False
        before: dict[int, list[str]] = {}
        for b in range(n):
            need(offset[b] == expected, "index-offset")
            need(1 <= self.stored[b] <= 1 << 40 and 1 <= self.length[b] <= 1 << 40, "index-offset")
            expected = align(offset[b] + self.stored[b])
            need(self.chain[b] < len(self.chains), "index-chain")
            need(self.form[b] < len(self.m["forms"]), "index-form")
            need(self.worth[b] - self.worth[b] == 0 and self.worth[b] >= 0, "index-worth")
            need(self.level[b] == seen[self.chain[b]], "index-level")
            seen[self.chain[b]] += 1
            number, _, count = self.chains[self.chain[b]]
            t, f = self.m["tensors"][number], self.m["forms"][self.form[b]]
            need((f["kind"] == "raw") == ("group_rows" not in t), "index-form")
            kinds = before.setdefault(self.chain[b], [])
            if f["kind"] == "plane":
                after = kinds[::-1].index("sign") if "sign" in kinds else 15
                need(after < 15 and set(kinds[len(kinds) - after :]) <= {"plane"}, "index-plane")
            kinds.append(f["kind"])
            need(f["kind"] != "sparse" or t["shape"][-1] <= 65536, "index-form")
            if f["kind"] == "raw":
                need(self.level[b] == 0, "index-level")
                need(not raw_done and b < self.required, "index-order")
                size = product(t["shape"]) * BYTES[t["dtype"]]
            else:
                raw_done = True
                n_columns = t["shape"][-1]
                k, w = f.get("rank", 0), 2 if f.get("factors") == "F16" else 1
                size = count * -(-n_columns // 8) if f["kind"] in ("sign", "plane") else 0
                size += (count + n_columns) * k * w + (4 * k if w == 1 else 0)
                if f["kind"] == "sparse":
                    fixed = 4 + 4 * -(-count // 64) + 2 * count
                    entries = min(max((self.length[b] - fixed) // 3, 1), count * n_columns)
                    size = fixed + 3 * entries
            limit = self.stored[b] if f["codec"] == "none" else 256 * self.stored[b] + 65536
            need(size == self.length[b] <= limit, "index-block-length")
            need(f["codec"] != "none" or size == self.stored[b], "index-block-length")
        need(self.offset[-1] + self.stored[-1] == end, "index-offset")
        for c, (number, _, _) in enumerate(self.chains):
            need("group_rows" in self.m["tensors"][number] or seen[c] == 1, "index-missing")

    def plan(self, budget: int) -> tuple[int, int, int, int]:  # §7.3
        resident = [sum(self.length[:n]) for n in range(self.available + 1)]
        need(budget >= resident[self.required], "budget-too-small")
        n = max(n for n, size in enumerate(resident) if size <= budget)
        end = self.offset[n - 1] + self.stored[n - 1] if n else self.first
        return n, resident[n], self.first, end - self.first

    def read(self, n: int) -> list[bytes]:  # §7.4
        out = []
        if self.starts:
            self.join()
        for b in range(n):
            end = self.offset[b] + self.stored[b]
            stored = self.data[self.offset[b] : end]
            need(digest(stored) == self.digest[b], "block-digest")
            f = self.m["forms"][self.form[b]]
            data = zstd(stored, self.length[b], "block-codec") if f["codec"] == "zstd" else stored
            number, _, count = self.chains[self.chain[b]]
            t = self.m["tensors"][number]
            if f["kind"] == "raw":
                need(number not in self.scales or finite(floats(data, t["dtype"])), "block-values")
            elif f["kind"] == "sparse":
                self.entries(t, count, data)
            else:
                _, u, v, scale, spare = self.split(t, f, count, data)
                need(not any(spare), "block-padding")
                need(finite(u) and finite(v) and finite(scale), "block-values")
            if b + 1 < len(self.offset) and b + 1 < self.available:
                need(not any(self.data[end : self.offset[b + 1]]), "padding")
            out.append(data)
        return out

    def check_all(self) -> None:  # §7.2
        self.read(self.available)
        ends = [a["offset"] + a["stored"] for a in self.m["attachments"] if "stored" in a]
        for a in self.m["attachments"]:
            self.attachment(a["name"])
        need(not any(self.data[self.head + max(ends, default=0) : self.first]), "padding")

    def attachment(self, wanted: str) -> bytes:  # §4.5
        (a,) = (a for a in self.m["attachments"] if a["name"] == wanted)
        if "data" in a:
            return bytes(a["data"])
        stored = self.data[self.head + a["offset"] :][: a["stored"]]
        need(digest(stored) == a["digest"], "attachment-digest")
        return zstd(stored, a["length"], "attachment-codec") if a["codec"] == "zstd" else stored

    @staticmethod
    def split(
        t: dict[str, Any], f: dict[str, Any], count: int, data: bytes
    ) -> tuple[list[list[int]], list[float], list[float], list[float], list[int]]:  # §6.2
        n, k, w = t["shape"][-1], f.get("rank", 0), 2 if f.get("factors") == "F16" else 1
        kind = f.get("factors", "F16")
        width = -(-n // 8) if f["kind"] in ("sign", "plane") else 0
        bits = [[data[r * width + j // 8] >> (j % 8) & 1 for j in range(8 * width)] for r in range(count)]
        at = count * width
        u = floats(data[at : at + count * k * w], kind)
        v = floats(data[at + count * k * w : at + (count + n) * k * w], kind)
        scale = floats(data[at + (count + n) * k * w :], "F32") if w == 1 else [1.0] * k
        return [r[:n] for r in bits], u, v, scale, [b for r in bits for b in r[n:]]

    @staticmethod
    def entries(t: dict[str, Any], count: int, data: bytes) -> list[tuple[int, int, float]]:  # §6.6
        tiles = -(-count // 64)
        fixed = 4 + 4 * tiles + 2 * count
        n = (len(data) - fixed) // 3
        (scale,) = struct.unpack_from("<f", data)
        starts = struct.unpack_from(f"<{tiles}I", data, 4)
        offsets = struct.unpack_from(f"<{count}H", data, 4 + 4 * tiles)
        columns = struct.unpack_from(f"<{n}H", data, fixed)
        values = floats(data[fixed + 2 * n :], "F8_E4M3")
        begin = [starts[r // 64] + offsets[r] for r in range(count)] + [n]
        need(starts[0] == 0 and not any(offsets[::64]) and begin == sorted(begin), "block-rows")
        for r in range(count):
            own = list(columns[begin[r] : begin[r + 1]])
            need(own == sorted(set(own)) and all(c < t["shape"][-1] for c in own), "block-columns")
        need(finite([scale, *values]), "block-values")
        return [(r, columns[e], scale * values[e]) for r in range(count) for e in range(begin[r], begin[r + 1])]

    def rebuild(self, wanted: str, payloads: list[bytes]) -> list[list[float]]:  # §6.3, §7.5: before the last rounding
        names = [t["name"] for t in self.m["tensors"]]
        number = names.index(self.m["aliases"].get(wanted, wanted))
        t = self.m["tensors"][number]

        def raw(i: int) -> list[float]:
            chain = next(c for c, entry in enumerate(self.chains) if entry[0] == i)
            return floats(payloads[self.chain.index(chain)], self.m["tensors"][i]["dtype"])

        if "group_rows" not in t:
            return [raw(number)]
        n = t["shape"][-1]
        row_scale, col_scale = raw(t["row_scale"]), raw(t["col_scale"])
        out = []
        groups = [(c, a, count) for c, (i, a, count) in enumerate(self.chains) if i == number]
        for g, (chain, first, count) in enumerate(groups):
            two = len(self.m["tensors"][t["col_scale"]]["shape"]) == 2
            columns = col_scale[g * n : (g + 1) * n] if two else col_scale
            total = [[0.0] * n for _ in range(count)]
            magnitude = [[0.0] * n for _ in range(count)]
            for b in (b for b in range(len(payloads)) if self.chain[b] == chain):
                f = self.m["forms"][self.form[b]]
                if f["kind"] == "sparse":
                    for r, j, value in self.entries(t, count, payloads[b]):
                        total[r][j] = total[r][j] + value
                    continue
                k = f.get("rank", 0)
                signs, u, v, scale, _ = self.split(t, f, count, payloads[b])
                for r in range(count):
                    for j in range(n):
                        if f["kind"] == "plane":
                            magnitude[r][j] = magnitude[r][j] / 2
                        else:
                            magnitude[r][j] = 0.0
                        for i in range(k):
                            magnitude[r][j] = magnitude[r][j] + (u[r * k + i] * scale[i]) * v[j * k + i]
                        positive = f["kind"] == "lowrank" or signs[r][j]
                        total[r][j] = total[r][j] + (magnitude[r][j] if positive else -magnitude[r][j])
            out += [[(total[r][j] * row_scale[first + r]) * columns[j] for j in range(n)] for r in range(count)]
        return out


# ------------------------------------------------------------------------------------------------ tests of it


@pytest.mark.parametrize("blocks", [5, 6])
def test_the_second_reader_rebuilds_the_printed_values(example: str, data: bytes, blocks: int) -> None:
    facts = {r[0]: r[1] for r in rows(example)}
    reader = MiniReader(data, facts["root"])
    reader.check_all()
    values = reader.rebuild("w", reader.read(blocks))
    assert values == printed_values(example, blocks, "float64")
    rounded = [list(struct.unpack("<10e", struct.pack("<10e", *row))) for row in values]
    assert rounded == printed_values(example, blocks, "F16")
    assert reader.rebuild("head", reader.read(blocks)) == values
    plan = ("blocks", "resident bytes", "range offset", "range length")
    assert list(map(str, reader.plan(120))) == [facts[f"budget 120: {key}"] for key in plan]
    assert reader.attachment("config.json") == b'{"model_type":"tiny"}'


def test_without_blocks_a_chain_is_zero(data: bytes) -> None:
    reader = MiniReader(data)
    with bsformat.open(MemorySource(data)) as file:
        assert reader.rebuild("w", reader.read(3)) == bsformat_values(file, "w", 3).tolist()


def cut(data: bytes, length: int) -> bytes:
    return data[:80] + struct.pack("<Q", length) + data[88:length]


@pytest.mark.parametrize("length", [1152, 1172, 1173, 1216, 1252, 1280, 1312, 1371, 1372])
def test_both_readers_take_the_same_prefix_files(data: bytes, length: int) -> None:
    part = cut(data, length)
    whole = length in (1172, 1252, 1312, 1372)
    assert (verdict_mini(part) == "") is whole
    assert verdict(part) == verdict_mini(part)
    if whole:
        assert MiniReader(part).available == {1172: 3, 1252: 4, 1312: 5, 1372: 6}[length]


def verdict(data: bytes) -> str:
    """The reason why bsformat refuses the bytes; "" if it does not."""
    try:
        problems = bsformat.verify(MemorySource(data)).problems
    except BstkError as error:
        return error.reason
    return problems[0].reason if problems else ""


def verdict_mini(data: bytes) -> str:
    try:
        MiniReader(data).check_all()
    except Refused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_damaged_byte_is_refused_by_both_readers_for_the_same_reason(data: bytes, flip: int) -> None:
    seen = set()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= flip
        reason = verdict(bytes(damaged))
        assert reason, f"byte {at} may be anything"
        assert reason == verdict_mini(bytes(damaged)), f"byte {at}"
        seen.add(reason)
    assert {"not-bstk", "head-digest", "block-digest", "padding", "superblock-invalid"} <= seen


def sealed(data: bytes) -> bytes:
    """The same bytes with the root that they should have: what somebody does who means harm."""
    block = superblock.Superblock(*struct.unpack_from("<7Q", data, 32), root=bytes(32))
    return data[:96] + digest(data[:80] + data[128 : block.head_length]) + data[128:]


def test_both_readers_agree_on_every_changed_byte_of_a_head_with_a_new_root(data: bytes) -> None:
    """§4 and §5 say enough: whatever one byte of metadata or index becomes, both take it or both refuse it."""
    refused = set()
    end = superblock.decode(data[:128], "").head_length
    for flip in (0x01, 0x02, 0x80, 0xFF):
        for at in (*range(10, 96), *range(128, end)):
            changed = bytearray(data)
            changed[at] ^= flip
            first, second = verdict(sealed(bytes(changed))), verdict_mini(sealed(bytes(changed)))
            # Which of several reasons within one step is free, the step is not.
            assert step(first) == step(second), f"byte {at} ^ {flip}: {first!r}, {second!r}"
            refused.add(first)
    assert {"metadata-msgpack", "metadata-key", "metadata-value"} <= refused
    assert {"index-offset", "index-length", "block-digest"} <= refused


def step(reason: str) -> str:
    if reason in ("kind-unknown", "codec-unknown") or reason.startswith("metadata-"):
        return "metadata"
    return "index" if reason.startswith("index-") else reason


CURVE = {"metric": "perplexity", "text": "t", "tokens": 5, "window": 5, "dense": 2, "points": [[3, 9.0], [6, 3]]}
STACK = {
    "name": "w",
    "shape": [3, 1, 10],
    "dtype": "F32",
    "group_rows": 2,
    "row_scale": 1,
    "col_scale": 2,
    "transposed": True,
}
OUTSIDE = {"name": "f", "length": 5, "codec": "none", "digest": bytes(32), "offset": 0, "stored": 5}


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("writer",), "", "metadata-name"),
        (("writer",), "x" * 1024, ""),
        (("writer",), "x" * 1025, "metadata-name"),
        (("writer",), "\N{LATIN SMALL LETTER E WITH ACUTE}" * 513, "metadata-name"),
        (("writer",), "a\0", "metadata-name"),
        (("writer",), b"bytes", "metadata-value"),
        (("more",), 1, "metadata-key"),
        (("extra", "anything"), [None, True, -1, 2**64 - 1, 0.5, b"", {"": []}], ""),
        (("extra", "nan"), float("nan"), "metadata-msgpack"),
        (("extra", "time"), msgpack.Timestamp(1, 1), "metadata-msgpack"),
        (("extra", "deep"), [[[[[[[[[[[[[[]]]]]]]]]]]]]], ""),
        (("extra", "deep"), [[[[[[[[[[[[[[[]]]]]]]]]]]]]]], "metadata-msgpack"),
        (("tensors", 0, "more"), 1, "metadata-key"),
        (("tensors", 0, "transposed"), False, "metadata-key"),
        (("tensors", 0, "row_scale"), 1, "metadata-key"),
        (("tensors", 0, "name"), "w", "metadata-duplicate"),
        (("tensors", 0, "shape"), [], "index-block-length"),
        (("tensors", 0, "shape"), [1, 10, 1, 1, 1, 1, 1, 1], ""),
        (("tensors", 0, "shape"), [10, 1, 1, 1, 1, 1, 1, 1, 1], "metadata-value"),
        (("tensors", 0, "shape"), [0], "metadata-value"),
        (("tensors", 0, "shape"), [True, 10], "metadata-value"),
        (("tensors", 0, "shape"), [10.0], "metadata-value"),
        (("tensors", 0, "shape"), [2**40], "metadata-value"),
        (("tensors", 0, "shape"), [2**20, 2**21], "metadata-value"),
        (("tensors", 0, "dtype"), "I16", ""),
        (("tensors", 0, "dtype"), "U64", "metadata-value"),
        (("tensors", 1, "dtype"), "I32", "metadata-value"),
        (("tensors", 3, "dtype"), "BF16", ""),
        (("tensors", 3, "dtype"), "F8_E4M3", "metadata-value"),
        (("tensors", 3, "transposed"), True, ""),
        (("tensors", 3, "transposed"), 1, "metadata-value"),
        (("tensors", 3, "shape"), [3, 1, 10], ""),
        (("tensors", 3), STACK, ""),
        (("tensors", 3), STACK | {"transposed": 0}, "metadata-value"),
        (("tensors", 3), STACK | {"shape": [30]}, "metadata-value"),
        (("tensors", 3, "shape"), [30], "metadata-value"),
        (("tensors", 3, "group_rows"), 0, "metadata-value"),
        (("tensors", 3, "group_rows"), 4, "metadata-value"),
        (("tensors", 3, "group_rows"), 3, "index-chain"),
        (("tensors", 3, "row_scale"), 3, "metadata-value"),
        (("tensors", 3, "row_scale"), 4, "metadata-value"),
        (("tensors", 3, "row_scale"), -1, "metadata-value"),
        (("tensors", 3, "col_scale"), 0, ""),
        (("tensors", 3, "col_scale"), 1, "metadata-value"),
        (("tensors", 2, "shape"), [1, 10], "metadata-value"),
        (("forms", 0, "rank"), 1, "metadata-key"),
        (("forms", 0, "kind"), "ternary", "kind-unknown"),
        (("forms", 0, "kind"), "sparse", "index-form"),
        (("forms", 2, "kind"), "lowrank", "index-block-length"),
        (("forms", 2, "kind"), "plane", "metadata-key"),
        (("forms", 4), {"kind": "plane", "codec": "zstd"}, ""),
        (("forms", 4), {"kind": "sparse", "codec": "none", "factors": "F16"}, "metadata-key"),
        (("forms", 4), {"kind": "lowrank", "codec": "none", "rank": 1}, "metadata-key"),
        (("forms", 0, "codec"), "gzip", "codec-unknown"),
        (("forms", 2, "rank"), 0, "metadata-value"),
        (("forms", 2, "rank"), 4097, "metadata-value"),
        (("forms", 2, "rank"), 3, "index-block-length"),
        (("forms", 2, "factors"), "BF16", "metadata-value"),
        (("forms", 4), {"kind": "sign", "codec": "zstd", "rank": 4096, "factors": "F16"}, ""),
        (("aliases", "other"), "norm", ""),
        (("aliases", "other"), "head", "metadata-value"),
        (("aliases", "other"), 3, "metadata-value"),
        (("aliases", "norm"), "w", "metadata-duplicate"),
        (("aliases", "other"), "w.row_scale", ""),  # binds writers only
        (("attachments", 0, "length"), 20, "metadata-value"),
        (("attachments", 0, "codec"), "none", "metadata-key"),
        (("attachments", 0, "name"), "a/b", ""),
        *(
            (("attachments", 0, "name"), n, "metadata-name")
            for n in ("/a", "a/", "a//b", "../a", "a/./b", "a\\b", "c:a")
        ),
        (("attachments", 1), OUTSIDE, "attachment-offset"),
        (("attachments", 1), OUTSIDE | {"digest": bytes(31)}, "metadata-value"),
        (("attachments", 1), OUTSIDE | {"stored": 4}, "metadata-value"),
        (("attachments", 1), OUTSIDE | {"codec": "zstd", "length": 65536 + 1281}, "metadata-value"),
        (("attachments", 1), OUTSIDE | {"codec": "lz4"}, "codec-unknown"),
        (("curves", 0), CURVE, ""),
        (("curves", 0), CURVE | {"points": [[3, 1.0], [3, 2.0]]}, "metadata-value"),
        (("curves", 0), CURVE | {"points": [[3, "1"]]}, "metadata-value"),
        (("curves", 0), CURVE | {"points": [[2**22, 1.0]]}, "metadata-value"),
        (("curves", 0), CURVE | {"points": [[2**22 + 1, 1.0]]}, "metadata-value"),
        (("curves", 0), CURVE | {"tokens": 2**50 + 1}, "metadata-value"),
        (("curves", 0), CURVE | {"dense": None}, "metadata-value"),
    ],
)
def test_what_the_metadata_tables_allow_and_refuse(
    data: bytes, script: ModuleType, path: tuple[Any, ...], value: object, reason: str
) -> None:
    block = superblock.decode(data[:128], "")
    decoded = strict_msgpack(zstd(data[128 : 128 + block.metadata_stored], block.metadata_length, ""))
    item: Any = decoded
    for key in path[:-1]:
        item = item[key]
    if isinstance(item, list) and path[-1] == len(item):
        item.append(value)
    else:
        item[path[-1]] = value
    changed = with_metadata(data, decoded, script.frame)
    assert step(verdict_mini(changed)) == step(verdict(changed))
    assert verdict(changed) == reason


def with_metadata(data: bytes, decoded: dict[str, Any], frame: Callable[[bytes], bytes]) -> bytes:
    """The file with other metadata, lengths and root put right."""
    old = superblock.decode(data[:128], "")
    raw = msgpack.packb(decoded)
    stored, rest = frame(raw), data[128 + old.metadata_stored : old.head_length]
    start = align(128 + len(stored) + len(rest))
    blocks = data[old.blocks_offset :]
    size = start + len(blocks)
    lengths = struct.pack("<7Q", len(stored), len(raw), old.index_stored, old.index_length, 0, size, size)
    front = data[:32] + lengths + data[88:128] + stored + rest
    return sealed(front + bytes(start - len(front)) + blocks)


@pytest.mark.parametrize("path", [("writer",), ("extra",), ("tensors", 0, "dtype"), ("tensors", 3, "col_scale")])
def test_a_missing_key_is_refused(data: bytes, script: ModuleType, path: tuple[Any, ...]) -> None:
    block = superblock.decode(data[:128], "")
    decoded = strict_msgpack(zstd(data[128 : 128 + block.metadata_stored], block.metadata_length, ""))
    item: Any = decoded
    for key in path[:-1]:
        item = item[key]
    del item[path[-1]]
    changed = with_metadata(data, decoded, script.frame)
    assert verdict(changed) == verdict_mini(changed) == "metadata-key"


def test_an_external_attachment_and_scales_per_row_group(tmp_path: Path) -> None:
    """What the example does not show, written by bsformat and read by the second reader."""
    rng = np.random.default_rng(5)
    tensors = [
        bsformat.Tensor("r", (6,), "F32"),
        bsformat.Tensor("c", (2, 5), "BF16"),
        bsformat.Tensor("t", (2, 3, 5), "BF16", group_rows=4, row_scale=0, col_scale=1),
    ]
    path, form = tmp_path / "file.bstk", bsformat.Form("sign", "none", 3, "F16")
    text = b"tokens " * 5000
    with bsformat.Writer(path, tensors) as writer:
        writer.put(0, bsformat.Form("raw"), rng.random(6).astype("<f4").tobytes())
        writer.put(1, bsformat.Form("raw"), rng.integers(0x3E80, 0x4000, 10).astype("<u2").tobytes())
        for chain, count in ((2, 4), (3, 2)):
            for _ in range(2):
                signs = rng.integers(0, 32, (count, 1)).astype("u1")
                u, v = rng.standard_normal((count, 3)), rng.standard_normal((5, 3))
                writer.put(chain, form, payload.join(signs, u.astype("<f2"), v.astype("<f2"), None))
        writer.attach("tokenizer.json", text)
        writer.finish([(3, 2.0), (2, 3.0), (2, 1.0), (3, 0.5)])
    reader = MiniReader(path.read_bytes())
    reader.check_all()
    assert reader.attachment("tokenizer.json") == text
    with bsformat.open(path) as file:
        assert file.metadata.attachments[0].codec == "zstd"
        columns = payload.as_float(np.frombuffer(file.read_block(1), np.uint8), "BF16").reshape(2, 5)
        row = payload.as_float(np.frombuffer(file.read_block(0), np.uint8), "F32")
        expected = []
        for g, (chain, first, count) in enumerate(((2, 0, 4), (3, 4, 2))):
            levels = [(form, file.read_block(b)) for b in range(6) if file.index.chain[b] == chain]
            values = chain_values(file.tensors[2], count, levels, row[first : first + count], columns[g])
            expected += values.tolist()
    assert reader.rebuild("t", reader.read(6)) == expected


def every_kind(path: Path) -> int:
    """Write a file whose two chains have blocks of every kind; the number of blocks."""
    rng = np.random.default_rng(7)
    tensors = [
        bsformat.Tensor("r", (70,), "F32"),
        bsformat.Tensor("c", (5,), "F16"),
        bsformat.Tensor("t", (70, 5), "F32", group_rows=66, row_scale=0, col_scale=1),
    ]
    bits = lambda count: rng.integers(0, 32, (count, 1)).astype("u1")  # noqa: E731
    halves = lambda *shape: rng.standard_normal(shape).astype("<f2")  # noqa: E731
    codes = lambda *shape: rng.integers(0, 0x7F, shape).astype("u1")  # noqa: E731
    forms = {
        "sign": bsformat.Form("sign", rank=1, factors="F16"),
        "sign8": bsformat.Form("sign", rank=2, factors="F8_E4M3"),
        "plane": bsformat.Form("plane"),
        "sparse": bsformat.Form("sparse"),
        "lowrank": bsformat.Form("lowrank", rank=1, factors="F16"),
        "lowrank8": bsformat.Form("lowrank", rank=2, factors="F8_E4M3"),
    }
    with bsformat.Writer(path, tensors) as writer:
        writer.put(0, bsformat.Form("raw"), rng.random(70).astype("<f4").tobytes())
        writer.put(1, bsformat.Form("raw"), rng.random(5).astype("<f2").tobytes())
        for chain, count in ((2, 66), (3, 4)):
            place = rng.permutation(count * 5)[: count // 2]
            scale = rng.random(2).astype("<f4")
            for form, data in (
                ("sparse", sparse.join(count, 0.3, place // 5, place % 5, codes(len(place)))),
                ("sign", payload.join(bits(count), halves(count, 1), halves(5, 1), None)),
                ("plane", payload.join_plane(bits(count))),
                ("plane", payload.join_plane(bits(count))),
                ("lowrank8", payload.join_lowrank(codes(count, 2), codes(5, 2), scale)),
                ("sign8", payload.join(bits(count), codes(count, 2), codes(5, 2), scale)),
                ("plane", payload.join_plane(bits(count))),
                ("sparse", sparse.join(count, -1.7, np.array([1]), np.array([4]), codes(1))),
                ("lowrank", payload.join_lowrank(halves(count, 1), halves(5, 1), None)),
            ):
                writer.put(chain, forms[form], data)
        writer.finish([(2 + i % 2, 2.0) for i in range(18)])
    return 20


def test_both_readers_rebuild_blocks_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "file.bstk"
    count = every_kind(path)
    reader = MiniReader(path.read_bytes())
    reader.check_all()
    with bsformat.open(path) as file:
        kinds = {file.block(b).form.kind for b in range(count)}
        assert kinds == set(registry.KINDS)
        values = [bsformat_values(file, "t", blocks).tolist() for blocks in range(2, count + 1)]
    assert values == [reader.rebuild("t", reader.read(blocks)) for blocks in range(2, count + 1)]
    assert len({str(v) for v in values}) == count - 1


def test_both_readers_agree_on_every_changed_byte_of_a_sparse_block(tmp_path: Path) -> None:
    """§6.6 says enough: with the digests put right, both take the block or both refuse it for the same reason."""
    path = tmp_path / "file.bstk"
    every_kind(path)
    with bsformat.open(path) as file:
        block, good = file.block(3), file.read_block(3)
    assert (block.form.kind, block.rows) == ("sparse", 4)

    def refusal(check: Callable[[], object]) -> str:
        try:
            check()
        except (BstkError, Refused) as error:
            return getattr(error, "reason", str(error))
        return ""

    seen = set()
    for at in range(len(good)):
        for flip in (1, 2, 4, 0x78, 0x80, 0xFF):
            data = good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]
            first = refusal(lambda data=data: payload.check(block.form, block.tensor, 4, data, False, "", ""))
            assert first == refusal(lambda data=data: MiniReader.entries({"shape": [70, 5]}, 4, data)), f"byte {at}"
            seen.add(first)
    assert seen == {"", "block-rows", "block-columns", "block-values"}


def test_the_first_read_of_the_example_is_the_only_one(data: bytes) -> None:
    assert head.FIRST_READ == 16384  # §7.1 names it
    assert len(metadata.encode(head.read_head(MemorySource(data), None).metadata)) == 419
