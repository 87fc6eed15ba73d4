"""safetensors files read and written tensor by tensor, as bytes: a header, and ranges of the file after it.

The library of that name takes all tensors of a file at once when it writes, and gives those of bfloat16 to torch alone.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Final

from bsformat.errors import ModelError
from bsformat.registry import DTYPE_BYTES

#: Of a header, in bytes, as the library has it.
_MAX_HEADER: Final = 100_000_000
_LENGTH: Final = 8
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        path: the file. name, dtype, shape: as its header says; ``dtype`` by the names of safetensors.
        offset, length: its range in the file, bytes.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    def read(self) -> bytes:
        """Its elements, row-major and little-endian.

        Raises:
            ModelError: reason ``weights``: the file cannot be read, or has become shorter.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError as error:
            raise _refused(self.path, f"cannot be read: {error.strerror or error}") from None
        if len(data) != self.length:
            raise _refused(self.path, f"{self.name}: {len(data)} of {self.length} bytes are there; copy it again")
        return data


def read_entries(path: Path) -> list[Entry]:
    """The tensors of a file, from its header alone.

    Raises:
        ModelError: reason ``weights``: it cannot be read, is cut off, or its header is not what it must be.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            lead = file.read(_LENGTH)
            length = int.from_bytes(lead, "little")
            if len(lead) < _LENGTH or length > size - _LENGTH:
                raise _refused(
                    path, f"is cut off, or no safetensors file: {size} bytes, its header would have {length}"
                )
            if length > _MAX_HEADER:
                raise _refused(path, f"its header would have {length} bytes; at most {_MAX_HEADER} are taken")
            data = file.read(length)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(data, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise _refused(path, "its header is no JSON object")
    begin = _LENGTH + length
    entries = [_entry(path, name, item, begin) for name, item in header.items() if name != "__metadata__"]
    at = begin
    for entry in sorted(entries, key=lambda e: (e.offset, e.length)):
        if entry.offset != at:
            raise _refused(path, f"its tensors do not follow each other: {entry.name} begins at byte {entry.offset}")
        at += entry.length
    if at > size:
        raise _refused(path, f"is cut off: it has {size} bytes, its header speaks of {at}; copy it again")
    if at < size:
        raise _refused(path, f"has {size - at} bytes after its last tensor")
    return entries


def _entry(path: Path, name: str, item: Any, begin: int) -> Entry:
    try:
        dtype, shape, (start, stop) = item["dtype"], item["shape"], item["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        raise _refused(path, f"its header says nothing usable of {name!r}") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _refused(path, f"{name} has elements of {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
    if not whole or stop - start != prod(shape) * DTYPE_BYTES[dtype]:
        raise _refused(path, f"{name}: {dtype} {shape} does not take the bytes [{start}, {stop})")
    return Entry(path, name, dtype, tuple(shape), begin + start, stop - start)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if a key is there twice, of which readers would take one or the other."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is there twice")
    return out


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(what, where=str(path), reason="weights")


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that is to be written: ``dtype`` by the names of safetensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def write_header(out: IO[bytes], tensors: Sequence[Planned], about: Mapping[str, str]) -> None:
    """Write what comes before the elements of ``tensors``, which are to follow in this order and without gaps.

    Args:
        about: text that the file says of itself.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % _ALIGNMENT)
    out.write(len(data).to_bytes(_LENGTH, "little") + data)


def shards(tensors: Iterable[Planned], limit: int) -> list[list[Planned]]:
    """Tensors in their order, cut into files of at most ``limit`` bytes of elements, or of one larger tensor."""
    out: list[list[Planned]] = []
    size = 0
    for tensor in tensors:
        if not out or size + tensor.nbytes > limit:
            out.append([])
            size = 0
        out[-1].append(tensor)
        size += tensor.nbytes
    return out
