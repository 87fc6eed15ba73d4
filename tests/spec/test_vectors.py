"""The conformance vectors of `spec/vectors`: kept as they are, made by their generator, and read by bsformat."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest

import bsformat
from bsformat import payload, registry
from bsformat.network import Network
from bsformat.rebuild import chain_values, round_to
from tests.bsformat.conftest import first_problem
from tests.servers import Reply, Request, Scripted

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"
#: BLAKE3 of the list of each closed set. A version that is released never changes again; a later one has its own line.
CLOSED: dict[str, str] = {}


def vectors(folder: str) -> list[Any]:
    paths = sorted((VECTORS / folder).glob("*.json"))
    return [pytest.param(json.loads(path.read_text(encoding="utf-8")), id=path.stem) for path in paths]


VALID, INVALID, TRANSPORT, FLIPS, SIGNATURES = map(vectors, ("valid", "invalid", "transport", "flips", "signatures"))


def objects(folder: str, vector: dict[str, Any]) -> tuple[bytes, dict[str, bytes]]:
    """The object to open, and the volumes that go with it."""
    first, *others = [(name, (VECTORS / folder / name).read_bytes()) for name in vector["objects"]]
    return first[1], dict(others)


def digest(data: bytes | memoryview) -> str:
    return blake3.blake3(data).hexdigest()


# ------------------------------------------------------------------------------------------------ the corpus


def test_no_vector_is_missing_or_changed() -> None:
    listed = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))
    there = {
        path.relative_to(VECTORS).as_posix(): digest(path.read_bytes())
        for folder in listed["counts"]
        for path in (VECTORS / folder).iterdir()
    }
    assert there == listed["blake3"]
    counts = {"valid": len(VALID), "invalid": len(INVALID), "transport": len(TRANSPORT), "flips": len(FLIPS)}
    counts["signatures"] = len(SIGNATURES)
    assert counts == listed["counts"]
    assert counts["valid"] >= 110
    assert counts["invalid"] >= 630
    assert counts["transport"] >= 36
    assert counts["signatures"] >= 85
    for version, sum_ in CLOSED.items():
        assert listed["since"] != version or digest((VECTORS / "vectors.json").read_bytes()) == sum_


def test_the_generator_makes_these_vectors() -> None:
    command = [sys.executable, str(VECTORS / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == (f"{len(_listed()) + 1} files\n", 0)


def _listed() -> dict[str, str]:
    sums: dict[str, str] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))["blake3"]
    return sums


def test_a_changed_vector_is_noticed_by_the_generator(tmp_path: Path) -> None:
    copy = tmp_path / "vectors"
    shutil.copytree(VECTORS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    place = copy / "valid" / "smallest.bstk"
    place.write_bytes(place.read_bytes() + b"\0")
    (copy / "invalid" / "index-empty.json").unlink()
    (copy / "valid" / "kept.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, str(copy / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "valid/smallest.bstk: differs",
        "invalid/index-empty.json: is missing",
        "valid/kept.json: is not made by this program",
    ]


def test_every_reason_that_a_reader_can_give_has_a_vector(repo_root: Path) -> None:
    text = (repo_root / "spec" / "bstk-v1.md").read_text(encoding="utf-8")
    # Sections 9.8 and 9.9 are of writers, of programs, and of what has no code of its own.
    tables = text[text.index("### 9.1 ") : text.index("### 9.8 ")]
    codes = set(re.findall(r"^\| `([a-z0-9-]+)` \|", tables, re.M))
    plans = {plan["reason"] for v in VALID for plan in v.values[0]["plans"] if "reason" in plan}
    given = {v.values[0]["reason"] for v in INVALID + TRANSPORT} | plans
    assert len(codes) >= 44
    assert codes ^ (given - {None}) == {"source"}  # the one general code that an answer of a server has


def test_sections_that_vectors_name_exist(repo_root: Path) -> None:
    text = (repo_root / "spec" / "bstk-v1.md").read_text(encoding="utf-8")
    named = {v.values[0]["section"] for v in VALID + INVALID + TRANSPORT}
    assert {s for s in named if f"\n## {s} " not in text and f"\n### {s} " not in text} == set()


def test_each_sentence_of_the_compatibility_policy_has_its_vectors(repo_root: Path) -> None:
    text = (repo_root / "spec" / "bstk-v1.md").read_text(encoding="utf-8")
    policy = text[text.index("### 3.1 ") : text.index("### 3.2 ")]
    sentences = [line for line in policy.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`([^`]+)`", line.split("|")[2]) for line in sentences]
    there = {v.values[0]["name"] for v in VALID + INVALID}
    assert len(sentences) == 14
    assert all(named)
    assert {name for names in named for name in names} - there == set()


def test_what_is_never_registered_is_not(repo_root: Path) -> None:
    """Section 3.2: names in x- and bit 63 stay free, so that the vectors of what is unknown stay true."""
    names = {*registry.KINDS, *registry.CODECS, *registry.DTYPE_BYTES}
    assert not any(name.startswith("x-") for name in names)
    assert 63 not in registry.MUST_FEATURES
    unknown = [v.values[0] for v in INVALID if v.values[0]["reason"].endswith("-unknown")]
    assert len(unknown) > 8


# ------------------------------------------------------------------------------------------------ valid ones


@pytest.mark.parametrize("vector", VALID)
def test_a_valid_vector_is_read(vector: dict[str, Any]) -> None:
    data, volumes = objects("valid", vector)
    assert first_problem(data, volumes, root=vector["root"]) is None
    with bsformat.open(bsformat.MemorySource(data, "memory", volumes), root=vector["root"]) as file:
        report = _report(file, vector)
    assert {key: vector[key] for key in report} == report
    assert set(vector) - set(report) == {"name", "section", "shows", "objects"}


def _report(file: bsformat.Container, vector: dict[str, Any]) -> dict[str, Any]:
    """What the JSON of a vector states, as bsformat finds it."""
    s, meta = file.superblock, file.metadata
    return {
        "root": file.root,
        "version": file.version,
        "writer": meta.writer,
        "head_length": s.head_length,
        "blocks_offset": s.blocks_offset,
        "file_length": s.file_length,
        "present_length": s.present_length,
        "required_blocks": file.index.required,
        "available_blocks": file.available_blocks,
        "minimum_budget": file.minimum_bytes,
        "resident_bytes": file.total_bytes,
        "tensors": [_tensor(file, tensor) for tensor in file.tensors],
        "aliases": dict(meta.aliases),
        "attachments": [
            {"name": a.name, "length": a.length, "blake3": digest(file.attachment(a.name))} for a in meta.attachments
        ],
        "curves": [
            {
                "metric": c.metric,
                "text": c.text,
                "tokens": c.tokens,
                "window": c.window,
                "dense": c.dense,
                "points": [list(point) for point in c.points],
            }
            for c in meta.curves
        ],
        "extra": None if vector["extra"] is None else _plain(meta.extra),
        "blocks": [_block(file, number) for number in range(len(file))],
        "plans": [_plan(file, plan["budget"]) for plan in vector["plans"]],
        "rebuilt": [_rebuilt(file, item["blocks"]) for item in vector["rebuilt"]],
    } | (_volumes(file) if s.has_volumes else {})


def _volumes(file: bsformat.Container) -> dict[str, Any]:
    rows = file.metadata.volumes
    names, firsts = [None, *(v.name for v in rows)], [0, *(v.first_block for v in rows)]
    starts = [0, *(int(file.index.offset[first]) for first in firsts[1:])]
    volumes = [
        {"name": name, "first_block": a, "blocks": z - a, "offset": start, "length": stop - start}
        for name, a, z, start, stop in zip(
            names, firsts, [*firsts[1:], len(file)], starts, [*starts[1:], file.size], strict=True
        )
    ]
    if file.volumes:
        found = [(v.first_block, v.n_blocks, v.offset, v.length) for v in file.volumes]
        assert found == [tuple(v.values())[1:] for v in volumes]
    return {"object_length": file.superblock.object_length, "volumes": volumes}


def _tensor(file: bsformat.Container, tensor: bsformat.Tensor) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "packed": tensor.packed,
        "scale_vector": tensor.name not in file.model_tensors,
        "first_chain": tensor.first_chain,
        "chains": tensor.n_chains,
    }
    if tensor.packed:
        out |= {key: getattr(tensor, key) for key in ("group_rows", "row_scale", "col_scale", "transposed")}
    return out


def _block(file: bsformat.Container, number: int) -> dict[str, Any]:
    block = file.block(number)
    return {
        "tensor": block.tensor.name,
        "chain": int(file.index.chain[number]),
        "first_row": block.first_row,
        "rows": block.rows if block.tensor.packed else None,
        "level": block.level,
        "kind": block.form.kind,
        "codec": block.form.codec,
        "rank": block.form.rank or None,
        "factors": block.form.factors or None,
        "offset": block.offset,
        "stored": block.stored,
        "length": block.length,
        "worth": block.worth,
        "digest": block.digest.hex(),
    }


def _plan(file: bsformat.Container, budget: int) -> dict[str, Any]:
    try:
        plan = file.plan(budget)
    except bsformat.BstkError as error:
        small = {"minimum": file.minimum_bytes} if error.reason == "budget-too-small" else {}
        return {"budget": budget, "reason": error.reason} | small
    sizes = {"resident_bytes": plan.resident_bytes, "offset": plan.offset, "length": plan.length}
    return {"budget": budget, "blocks": plan.n_blocks} | sizes


def _rebuilt(file: bsformat.Container, blocks: int) -> dict[str, Any]:
    held = [file.read_block(number) for number in range(blocks)]
    return {"blocks": blocks, "tensors": {tensor.name: _values(file, tensor, held) for tensor in file.tensors}}


def _values(file: bsformat.Container, tensor: bsformat.Tensor, held: list[bytes]) -> dict[str, Any]:
    def of(chain: int) -> list[int]:
        return [b for b in range(len(held)) if file.index.chain[b] == chain]

    def scale(number: int) -> Any:
        vector = file.tensors[number]
        raw = np.frombuffer(held[of(vector.first_chain)[0]], np.uint8)
        return payload.as_float(raw, vector.dtype).reshape(vector.shape)

    if not tensor.packed:
        data = held[of(tensor.first_chain)[0]]
        return {"shape": list(tensor.shape), "bytes": len(data), "blake3": digest(data)}
    row, column = scale(tensor.row_scale), scale(tensor.col_scale)
    parts = []
    for g in range(tensor.n_chains):
        chain = tensor.first_chain + g
        first, rows = int(file.chains.first_row[chain]), int(file.chains.rows[chain])
        levels = [(file.block(b).form, held[b]) for b in of(chain)]
        columns = column[g] if column.ndim == 2 else column
        parts.append(chain_values(tensor, rows, levels, row[first : first + rows], columns))
    rounded = round_to(np.concatenate(parts).reshape(tensor.shape), tensor.dtype)
    if tensor.transposed:
        rounded = rounded.swapaxes(-1, -2)
    data = np.ascontiguousarray(rounded).tobytes()
    if tensor.dtype == "BF16":
        data = (np.frombuffer(data, "<u4") >> 16).astype("<u2").tobytes()
    return {"shape": list(rounded.shape), "bytes": len(data), "blake3": digest(data)}


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"hex": bytes(value).hex()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if hasattr(value, "items") else value


# ------------------------------------------------------------------------------------------------ invalid ones


@pytest.mark.parametrize("vector", INVALID)
def test_an_invalid_vector_is_refused_for_its_reason(vector: dict[str, Any], tmp_path: Path) -> None:
    known = {name for bit, name in registry.MUST_FEATURES.items() if registry.KNOWN_MUST >> bit & 1}
    if vector.get("unless") in known:
        pytest.skip(f"bsformat implements {vector['unless']}")
    data, volumes = objects("invalid", vector)
    source = bsformat.MemorySource(data, "memory", volumes)
    ask = vector.get("ask", {})
    opened = _reason(lambda: bsformat.open(source, root=ask.get("root")))
    assert (opened is None) == vector["opens"]
    if "attachment" in ask:
        reason = _reason(lambda: bsformat.open(source).attachment(ask["attachment"]))
    elif "level" in ask:
        reason = _reason(lambda: _ask_for_level(bsformat.open(source), *ask["level"], tmp_path))
    else:
        problem = first_problem(data, volumes, **({"root": ask["root"]} if "root" in ask else {}))
        reason = problem.reason if problem else None
    assert reason == vector["reason"]


def _ask_for_level(file: bsformat.Container, chain: int, level: int, folder: Path) -> None:
    """bsformat finds levels by number where it writes a file again: an order with one level more asks for it."""
    first = file.index.required
    order = list(zip(file.index.chain[first:].tolist(), file.index.worth[first:].tolist(), strict=True))
    assert sum(of == chain for of, _ in order) == level
    bsformat.rewrite(file, folder / "again.bstk", order=[*order, (chain, 0.0)])


def _reason(ask: Any) -> str | None:
    try:
        ask()
    except bsformat.BstkError as error:
        return error.reason
    return None


@pytest.mark.parametrize("vector", FLIPS)
def test_every_turned_bit_is_found_and_named(vector: dict[str, Any]) -> None:
    place = VECTORS / vector["object"]
    data = bytearray(place.read_bytes())
    opened = (VECTORS / vector["opened"]).read_bytes() if "opened" in vector else None
    volumes = {path.name: path.read_bytes() for path in place.parent.glob(f"{place.stem}.0*.bstk")}
    found = []
    for at in range(8 * len(data)):
        data[at // 8] ^= 1 << at % 8
        changed = bytes(data)
        problem = first_problem(opened, {place.name: changed}) if opened else first_problem(changed, volumes)
        data[at // 8] ^= 1 << at % 8
        found.append(problem.reason if problem else None)
    assert len(found) == vector["bits"]
    assert [[reason, len(list(run))] for reason, run in groupby(found)] == vector["reasons"]


# ------------------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize("vector", SIGNATURES)
def test_a_signature_says_what_it_says_or_is_refused(vector: dict[str, Any]) -> None:
    place = VECTORS / "signatures"
    read = partial(bsformat.read_signature, place / vector["signature"], place / vector["key"])
    assert _reason(read) == vector["reason"]
    if vector["reason"]:
        return
    signed = read()
    says = {"name": signed.name, "root": signed.root, "sha256": signed.sha256 or None, "volumes": dict(signed.volumes)}
    assert says | {"key": signed.key} == vector["says"]
    assert _reason(lambda: bsformat.open(VECTORS / vector["file"], root=signed.root).close()) == vector["demands"]


def test_every_reason_to_refuse_a_signature_has_vectors(repo_root: Path) -> None:
    text = (repo_root / "spec" / "bstk-v1.md").read_text(encoding="utf-8")
    table = text[text.index("### 9.10 ") : text.index("## 10 ")]
    count = Counter(v.values[0]["reason"] for v in SIGNATURES)
    assert set(count) - {None} == set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.M)) - {"sign-missing"}
    assert all(n >= 8 for n in count.values())
    named = {v.values[0]["section"] for v in SIGNATURES}
    signing = (repo_root / "spec" / "signing.md").read_text(encoding="utf-8")
    assert {section for section in named if f"\n## {section} " not in signing} == set()


# ------------------------------------------------------------------------------------------------ servers


class _Player:
    """Plays the answers of a vector back, the last one for as long as requests come."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self._answers, self.seen = answers, 0

    def __call__(self, request: Request) -> Reply:
        answer = self._answers[min(self.seen, len(self._answers) - 1)]
        self.seen += 1
        name = request.path.rpartition("/")[2]
        data = (VECTORS / "valid" / name).read_bytes()
        begin = request.start + answer.get("shift", 0)
        body = data[begin : request.stop + answer.get("shift", 0)]
        last = begin + len(body) - 1
        headers = {"Content-Range": answer.get("range", f"bytes {begin}-{last}/{len(data)}")}
        if isinstance(headers["Content-Range"], str):
            headers["Content-Range"] = (
                headers["Content-Range"].replace("{begin}", str(begin)).replace("{last}", str(last))
            )
        if "body" in answer:
            body = data if answer["body"] == "whole" else b""
            if "range" not in answer:
                headers = {}
        body = body[: len(body) - answer.get("cut", 0)] + bytes(answer.get("more", 0))
        headers |= answer.get("headers", {})
        return Reply(answer.get("status", 206), body, {k: v for k, v in headers.items() if v is not None})


@pytest.mark.parametrize("vector", TRANSPORT)
def test_what_servers_do(vector: dict[str, Any], scripted: Scripted) -> None:
    name = vector["object"].rpartition("/")[2]
    scripted.data = (VECTORS / vector["object"]).read_bytes()
    scripted.reply = player = _Player(vector["answers"])
    network = Network(attempts=2, pause=0.001, longest_pause=0.001)

    def ask() -> None:
        with bsformat.open(scripted.url(name), network=network, cache=False) as file:
            for number in range(file.available_blocks if vector["read"] else 0):
                file.read_block(number)

    assert _reason(ask) == vector["reason"]
    assert player.seen >= len(vector["answers"])


def test_numbers_of_vectors_by_reason() -> None:
    """A reason of one vector alone would be thin: the codes with a whole class of faults behind them have several."""
    count = Counter(v.values[0]["reason"] for v in INVALID)
    assert {reason for reason, n in count.items() if n == 1} == {"attachment-digest"}
    assert count["metadata-value"] >= 100
