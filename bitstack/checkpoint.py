"""Opening what is to be packed: a Hugging Face directory or hub id, or a GGUF file."""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bsformat.errors import ModelError

from .task import Task, model_class, task_of

#: Files of a model directory that travel along with the weights, when they are there.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(slots=True)
class Checkpoint:
    """A dense model in memory, and what travels along with it.

    Attributes:
        name: a name for people: the directory's, the hub id's or the file's.
        model: the transformers model in float32 on the CPU, in eval mode.
        tokenizer: its tokenizer.
        files: the attachments: file name -> bytes.
        dtype: what the weights were stored as.
        task: what the model does.
    """

    name: str
    model: Any
    tokenizer: Any
    files: dict[str, bytes]
    dtype: torch.dtype
    task: Task = "causal"


def open_checkpoint(source: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Load a model and its tokenizer: a language model, causal or not, or an encoder, as its configuration says.

    No code that comes with a model is run: an ``auto_map`` in its configuration is ignored.

    Args:
        source: a directory with ``config.json`` and weights, a hub id, or a ``.gguf`` file.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: nothing there, no weights, an unknown architecture, or no tokenizer.
    """
    place = locate(source, revision=revision)
    model, dtype, task = _load_model(place.where, place.source)
    tokenizer = load_tokenizer(place)
    return Checkpoint(place.name, model, tokenizer, attachments(model, tokenizer), dtype, task)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is.

    Attributes:
        source: as it was named. name: a name for people, see `Checkpoint`.
        where: what transformers' ``from_pretrained`` functions take.
    """

    source: str
    name: str
    where: dict[str, Any]

    @property
    def gguf(self) -> Path | None:
        """The GGUF file that it is, if it is one."""
        file = self.where.get("gguf_file")
        return None if file is None else Path(self.where["pretrained_model_name_or_path"], file)


def locate(source: str | os.PathLike[str], *, revision: str | None = None) -> Place:
    """Find out what a model's name means.

    Raises:
        ModelError: nothing there, no weights, or reading it needs a package that is missing.
    """
    name = os.fspath(source)
    path = Path(name)
    if not path.exists() and (path.is_absolute() or name.startswith(".") or name.endswith(".gguf")):
        raise ModelError("no such file or directory; name a model directory, a hub id or a .gguf file", where=name)
    if revision is not None and path.exists():
        raise ModelError(f"is a local path: it has no revision {revision!r}; leave model.revision out", where=name)
    where: dict[str, Any] = {"pretrained_model_name_or_path": name} | ({"revision": revision} if revision else {})
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError("is a file, but no .gguf; name a model directory, a hub id or a .gguf file", where=name)
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        _need_gguf(name)
    elif path.is_dir():
        _check_directory(path)
    return Place(name, path.stem if path.is_file() else path.name or name, where)


def _need_gguf(name: str) -> None:
    for package in ("gguf", "accelerate"):  # transformers reads GGUF only with both
        if find_spec(package) is None:
            raise ModelError(f"reading GGUF needs the package {package}: pip install 'bitstack[gguf]'", where=name)


def _check_directory(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError("has no config.json; name the directory of a Hugging Face model", where=str(path))
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ModelError("has no weights (*.safetensors or *.bin); download the whole model", where=str(path))


def _load_model(where: dict[str, Any], name: str) -> tuple[Any, torch.dtype, Task]:
    """The model in float32, the type that its weights are stored as, and what it does."""
    from transformers import AutoConfig

    task: Task = "causal"
    try:
        dtype: Any = torch.float16
        if "gguf_file" not in where:  # the model's own configuration says float32 once it is loaded so
            config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
            dtype, task = config.dtype, task_of(config)
        load: Any = model_class(task).from_pretrained
        model, report = load(**where, dtype=torch.float32, trust_remote_code=False, output_loading_info=True)
    except ModelError as error:
        raise ModelError(error.message, where=name, reason=error.reason) from None
    except Exception as error:  # the libraries behind it raise whatever they like on files they cannot read
        raise ModelError(f"cannot be loaded as a language model: {one_line(error)}", where=name) from None
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"its files lack the tensor {missing[0]!r} ({len(missing)} in all); download the whole model", where=name
        )
    kept = dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32
    return model.eval().requires_grad_(False), kept, task


def load_tokenizer(place: Place) -> Any:
    """The tokenizer of a model.

    Raises:
        ModelError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**place.where, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"has no usable tokenizer: {one_line(error)}", where=place.source) from None


def one_line(error: BaseException) -> str:
    """What an error says, short and in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def attachments(model: Any, tokenizer: Any) -> dict[str, bytes]:
    """What travels along with the weights: file name -> bytes. The weights are not looked at."""
    files = {"config.json": clean_config(model.config.to_dict())}
    if getattr(model, "generation_config", None) is not None:
        files["generation_config.json"] = model.generation_config.to_json_string(use_diff=True).encode()
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for item in sorted(Path(folder).rglob("*")):
            name = item.relative_to(folder).as_posix()
            if item.is_file() and name in TOKENIZER_FILES:
                files[name] = item.read_bytes()
    return files


def clean_config(config: dict[str, Any]) -> bytes:
    """A model configuration as JSON, without what speaks of the packed model's former storage or of code to run."""
    kept = {k: v for k, v in config.items() if k not in ("quantization_config", "auto_map", "_name_or_path", "dtype")}
    return (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode()
