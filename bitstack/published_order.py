"""The order of the levels of a published BitStack checkpoint: ``compression_config.json``.

It is an array of configurations, each ``{"memory": bytes, "layers": {layer: levels}}``, each with a level more than
the one before it; layers are called ``layer.3.self_attn.q_proj``. For a model of 70B parameters it has 8,000
configurations of 560 layers, so it is read one configuration at a time.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from bsformat.errors import ModelError

from .safetensors_file import no_duplicates

FILE: Final = "compression_config.json"
_CHUNK: Final = 1 << 20
#: Characters of one configuration: of 100,000 layers with names of a hundred.
_LONGEST: Final = 1 << 24


def layer_name(path: str) -> str:
    """What the file calls a linear layer: ``layer``, the number of its decoder layer, and its path from there."""
    parts = path.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return path if first is None else ".".join(["layer", *parts[first:]])


def read_order(file: Path, levels: Mapping[str, int]) -> list[str]:
    """The layers in the order in which they get their levels: each is there once for every level.

    Levels that no configuration has come last, level by level.

    Args:
        levels: the decomposed layers by their path in the model, with how many levels each has.

    Raises:
        ModelError: reason ``order``: it cannot be read, names what is not there, or its configurations do not grow
            from one another.
    """
    paths = {layer_name(path): path for path in levels}
    number = {name: i for i, name in enumerate(paths)}
    most = np.array([levels[path] for path in paths.values()], np.int32)
    counts: list[npt.NDArray[np.int32]] = []
    limit = int(most.sum()) + 1
    first: list[str] = []
    for layers in _configurations(file):
        if len(counts) == limit:
            raise _refused(file, f"has more configurations than the {limit} that {limit - 1} levels can have")
        row = np.zeros(len(paths), np.int32)
        for name, count in layers.items():
            if name not in number:
                raise _refused(file, f"configuration {len(counts)} names {name!r}, which the checkpoint does not have")
            if type(count) is not int or not 0 <= count <= most[number[name]]:
                has = f"of which there are {most[number[name]]}"
                raise _refused(file, f"configuration {len(counts)} asks for {count!r} levels of {name!r}, {has}")
            row[number[name]] = count
        if len(layers) != len(paths):
            missing = next(name for name in paths if name not in layers)
            raise _refused(file, f"configuration {len(counts)} does not say how many levels {missing!r} has")
        first = first or list(layers)
        counts.append(row)
    if not counts:
        raise _refused(file, "has no configuration")
    names = np.array(list(paths))
    # Within a step that adds several levels: in the order in which the first configuration names the layers.
    rank = np.array([number[name] for name in first])
    out: list[str] = []
    held = np.zeros(len(paths), np.int32)
    for row in [*sorted(counts, key=lambda counted: int(counted.sum())), most]:
        if (row < held).any():
            worst = str(names[int(np.argmax(held - row))])
            raise _refused(file, f"configurations do not grow from one another: a larger one has less of {worst!r}")
        for level in range(int(held.min()), int(row.max())):
            out += [paths[str(names[i])] for i in rank if held[i] <= level < row[i]]
        held = row
    return out


def _configurations(file: Path) -> Iterator[dict[str, Any]]:
    """The ``layers`` of each configuration."""
    try:
        with open(file, encoding="utf-8") as stream:
            for number, item in enumerate(_Array(stream, file)):
                layers = item.get("layers")
                if not isinstance(layers, dict):
                    raise _refused(file, f"configuration {number} is no object with layers")
                yield layers
    except FileNotFoundError:
        what = "is not there, and nothing else says in which order the levels come; --order worth finds one"
        raise _refused(file, what) from None
    except OSError as error:
        raise _refused(file, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise _refused(file, "is no text in UTF-8") from None


class _Array:
    """The objects of an array of JSON, one in memory at a time."""

    def __init__(self, stream: IO[str], file: Path) -> None:
        self._stream, self._file = stream, file
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder(object_pairs_hook=no_duplicates)

    def __iter__(self) -> Iterator[Any]:
        if self._take() != "[":
            raise _refused(self._file, "is no JSON array of configurations")
        following = "]" if self._peek() == "]" else ","
        if following == "]":
            self._take()
        while following == ",":
            yield self._object()
            following = self._take()
            if following not in (",", "]"):
                raise _refused(self._file, "is no JSON, or cut off: an array that neither goes on nor ends")
        if self._peek():
            raise _refused(self._file, "goes on after its array")

    def _object(self) -> Any:
        if self._peek() != "{":  # only what has an end of its own can be told from the beginning of something longer
            raise _refused(self._file, "has a configuration that is no object of JSON")
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > _LONGEST or not self._more():
                    raise _refused(self._file, f"is no JSON, or cut off: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                raise _refused(self._file, f"is no JSON: {error}") from None
            else:
                return value

    def _peek(self) -> str:
        """The next character that is no white space; none at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _take(self) -> str:
        found = self._peek()
        self._at += len(found)
        return found

    def _more(self) -> bool:
        more = self._stream.read(_CHUNK)
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _refused(file: Path, what: str) -> ModelError:
    return ModelError(what, where=str(file), reason="order")
