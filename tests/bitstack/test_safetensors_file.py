"""Headers of safetensors files, read and written: what the library takes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitstack.safetensors_file import Planned, read_entries, shards, write_header
from bsformat.errors import ModelError

ENTRY = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def file_of(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_read_as_the_library_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {"a": np.arange(6, dtype="<f2").reshape(2, 3), "b": np.ones((), "<i8"), "c": np.zeros((0, 4), np.uint8)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    entries = {entry.name: entry for entry in read_entries(tmp_path / "x.safetensors")}
    assert {name: (e.dtype, e.shape, e.read()) for name, e in entries.items()} == {
        "a": ("F16", (2, 3), tensors["a"].tobytes()),
        "b": ("I64", (), tensors["b"].tobytes()),
        "c": ("U8", (0, 4), b""),
    }
    (tmp_path / "x.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="0 of 12 bytes are there"):
        entries["a"].read()
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        entries["a"].read()


def test_written_as_the_library_reads(tmp_path: Path) -> None:
    from safetensors import safe_open

    planned = [Planned("one", "F32", (2, 2)), Planned("two", "BF16", (3,)), Planned("none", "U8", (0,))]
    with open(tmp_path / "x.safetensors", "wb") as out:
        write_header(out, planned, {"format": "pt", "by": "test"})
        out.write(np.arange(4, dtype="<f4").tobytes() + bytes(6))
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "by": "test"}
        assert set(file.keys()) == {"one", "two", "none"}
        assert file.get_tensor("one").tolist() == [[0, 1], [2, 3]]
    assert {e.name: e.shape for e in read_entries(tmp_path / "x.safetensors")} == {t.name: t.shape for t in planned}


def test_shards() -> None:
    planned = [Planned(str(i), "U8", (size,)) for i, size in enumerate((4, 4, 20, 3, 3, 3))]
    assert [[t.name for t in shard] for shard in shards(planned, 8)] == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    assert len(shards(planned, 1000)) == 1


@pytest.mark.parametrize(
    ("header", "data", "what"),
    [
        ({"a": ENTRY}, bytes(11), "is cut off: it has"),
        ({"a": ENTRY}, bytes(13), "has 1 bytes after its last tensor"),
        ({"a": ENTRY, "b": ENTRY}, bytes(12), "do not follow each other: b begins"),
        ({"a": ENTRY | {"data_offsets": [4, 16]}}, bytes(16), "do not follow each other"),
        ({"a": ENTRY | {"data_offsets": [0, 11]}}, bytes(11), "does not take the bytes"),
        ({"a": ENTRY | {"data_offsets": [12, 0]}}, bytes(12), "does not take the bytes"),
        ({"a": ENTRY | {"data_offsets": [0]}}, bytes(12), "says nothing usable of 'a'"),
        ({"a": ENTRY | {"shape": [2, -3]}}, bytes(12), "does not take the bytes"),
        ({"a": ENTRY | {"shape": 6}}, bytes(12), "says nothing usable"),
        ({"a": ENTRY | {"shape": [1 << 62, 1 << 62]}}, bytes(12), "does not take the bytes"),
        ({"a": ENTRY | {"shape": [2.0, 3]}}, bytes(12), "does not take the bytes"),
        ({"a": ENTRY | {"dtype": "F8_E5M2"}}, bytes(12), "has elements of 'F8_E5M2'"),
        ({"a": ENTRY | {"dtype": ["F16"]}}, bytes(12), "has elements of ['F16']"),
        ({"a": [ENTRY]}, bytes(12), "says nothing usable"),
        ([ENTRY], b"", "no JSON object"),
        (b'{"a": 1, "a": 2}', b"", "is no JSON: a key is there twice"),
        (b"{" * 3, b"", "is no JSON"),
        (b"[" * 100_000, b"", "is no JSON"),
        (b"\xff", b"", "is no JSON"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, header: Any, data: bytes, what: str) -> None:
    path = file_of(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ModelError) as caught:
        read_entries(path)
    assert what in caught.value.message
    assert (caught.value.where, caught.value.reason) == (str(path), "weights")


@pytest.mark.parametrize(
    "data", [b"", b"1234567", b"\xff" * 20, (100_000_001).to_bytes(8, "little") + bytes(50), (9).to_bytes(8, "little")]
)
def test_lengths_are_bounded_before_they_are_used(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is cut off, or no safetensors file"):
        read_entries(path)


def test_a_header_of_more_than_the_library_takes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as out:
        out.write((100_000_001).to_bytes(8, "little"))
        out.truncate(200_000_000)
    with pytest.raises(ModelError, match="at most 100000000"):
        read_entries(path)
