"""A directory that transformers loads and the Hugging Face hub shows: ``config.json``, a ``.bstk``, and the rest.

    config.json             of the model, with ``quantization_config``: the method, the name of the file, its root
    model.bstk              the weights; where it has volumes, the others lie beside it under their names
    model.safetensors       one tensor without elements, for the loader of transformers, which asks for such a file
    generation_config.json, tokenizer files, README.md

Without bitstack the placeholder makes transformers fail with a shape that does not fit, where it would otherwise go on
with random weights.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

import torch

import bsformat
from bsformat import Container, Fetched
from bsformat.atomic import replace_file
from bsformat.cutting import split
from bsformat.errors import BstkError, ModelError, NotFoundError, WriteError

from .checkpoint import TOKENIZER_FILES
from .shell import TORCH_DTYPES, harmless, read_json

METHOD: Final = "bitstack"
FILE: Final = "model.bstk"
PLACEHOLDER: Final = "model.safetensors"
#: What the placeholder says of itself.
STANDING_IN: Final = ("bitstack", f"the weights are in {FILE}: pip install bitstack, import bitstack.transformers")
_DTYPE_NAMES: Final = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Attachments that become files: what is run as code never does.
_FILES: Final = frozenset({"generation_config.json", *TOKENIZER_FILES})


def write_repository(
    uri: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    budget: int | str = "100%",
    card: Callable[[Container], str] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    **options: Any,
) -> Fetched:
    """Write a directory for transformers and the hub from a ``.bstk``.

    Args:
        uri: the file: a path, ``http(s)://``, ``s3://``, ``hf://``, anything fsspec opens.
        folder: the directory; made if it is not there, and must be empty, or hold what this function wrote.
        budget: how much of the file goes into it.
        card: writes the text of README.md for the file in the directory; None: no README.md.
        progress: called with bytes done and to do, while the file is copied.
        options: those of `bsformat.fetch`: root, cache, network, storage options.

    Returns:
        What became of the ``.bstk``.

    Raises:
        WriteError: the folder holds something else, or cannot be written. ModelError: the file holds no configuration.
        SourceError, FormatError, BudgetError: as `bsformat.fetch`.
    """
    place = Path(folder)
    _check_folder(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot be made: {error.strerror}; name another folder", where=str(place)) from None
    _make_way(place / FILE, uri, budget, options)
    fetched = bsformat.fetch(uri, place / FILE, budget, progress=progress, **options)
    split(str(place / FILE))  # what lies in volumes does so here, each as large as a hub takes it
    with bsformat.open(place / FILE, root=fetched.root) as container:
        files = {"config.json": _config(container)}
        for item in container.metadata.attachments:
            if item.name in _FILES:
                files[item.name] = container.attachment(item.name)
        if card is not None:
            files["README.md"] = card(container).encode()
        _save_placeholder(container, place / PLACEHOLDER)
    for name, data in files.items():
        _put(place / name, data)
    for name in _FILES - set(files):  # of another model that was here
        (place / name).unlink(missing_ok=True)
    return fetched


def _make_way(path: Path, uri: str | os.PathLike[str], budget: int | str, options: dict[str, Any]) -> None:
    """Remove the ``.bstk`` of an earlier call if it is another one, or has more blocks than are wanted now.

    One that has fewer is grown. What cannot be read is left to `bsformat.fetch`, which names the reason.

    Raises:
        WriteError: it is what the directory is to be made of.
    """
    volumes = _volumes(path)
    try:
        with bsformat.open(path) as there:
            root, blocks = there.root, there.available_blocks
    except BstkError:
        return
    with bsformat.open(uri, **options) as container:
        if container.root == root and blocks <= container.plan(budget).n_blocks:
            return
        if os.path.exists(container.uri) and path.samefile(container.uri):
            raise WriteError("is read itself, and cannot become shorter: name another folder", where=str(path))
    try:
        for name in sorted(volumes - {path.name}):
            (path.parent / name).unlink(missing_ok=True)
        path.unlink()
    except OSError as error:
        raise WriteError(f"cannot be replaced: {error.strerror}", where=str(path)) from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WriteError("is no folder: name another with -o", where=str(folder), reason="repository-folder")
    known = {FILE, f"{FILE}.part", PLACEHOLDER, "config.json", "README.md", ".git", ".gitattributes", *_FILES}
    known |= _volumes(folder / FILE)
    others = sorted({item.name for item in folder.iterdir()} - known) if folder.is_dir() else []
    if others:
        raise WriteError(
            f"holds {others[0]!r}, which is no file of such a repository: name an empty or a new folder",
            where=str(folder),
            reason="repository-folder",
        )


def _volumes(path: Path) -> set[str]:
    """The names of the volumes of a file that is there already."""
    try:
        with bsformat.open(path) as container:
            return {volume.name for volume in container.metadata.volumes}
    except BstkError:
        return set()


def _config(container: Container) -> bytes:
    config = model_config(container)
    config["quantization_config"] = {"quant_method": METHOD, "file": FILE, "root": container.root}
    config["dtype"] = _DTYPE_NAMES.get(weight_type(container), "float32")
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def model_config(container: Container) -> dict[str, Any]:
    """The configuration of the model in a file, with the name of its class.

    Raises:
        ModelError: there is none.
    """
    try:
        config = harmless(read_json(container, "config.json"))
    except NotFoundError:
        raise ModelError("holds no config.json, so nothing can be built from it", where=container.uri) from None
    kind = model_name(container, "class")
    if not config.get("architectures") and kind:
        config["architectures"] = [kind]
    return config


def weight_type(container: Container) -> str:
    """The element type that most of the weights had."""
    sizes: dict[str, int] = {}
    for tensor in container.model_tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.dense_bytes
    return max(sizes, key=sizes.__getitem__, default="F32")


def model_name(container: Container, key: str = "name") -> str:
    """What a file says of the model that it was packed from: its ``name`` or its ``class``; empty if it does not."""
    about = container.metadata.extra.get("model")
    value = about.get(key) if isinstance(about, dict) else None
    return value if isinstance(value, str) else ""


def placeholder(container: Container) -> dict[str, torch.Tensor]:
    """The tensors of the placeholder: the first of the model, without elements."""
    tensor = next(iter(container.model_tensors.values()))
    return {tensor.name: torch.empty(0, dtype=TORCH_DTYPES[tensor.dtype])}


def _save_placeholder(container: Container, path: Path) -> None:
    from safetensors.torch import save

    data = save(placeholder(container), {"format": "pt", STANDING_IN[0]: STANDING_IN[1]})
    _put(path, data)


def _put(path: Path, data: bytes) -> None:
    def emit(out: IO[bytes]) -> None:
        out.write(data)

    replace_file(os.fspath(path), emit)


def hub_uri(repository: str, beside: str, name: str) -> str:
    """Where the hub keeps a file of a repository, of the commit that another file of it was downloaded from.

    Args:
        repository: ``owner/name``.
        beside: the other file, in the hub's cache: ``…/snapshots/COMMIT/SUBFOLDER/FILE``.
        name: of the file, seen from the other's folder.

    Raises:
        ModelError: reason ``repository-file``: the other file lies in a directory of its own, where this one is not.
    """
    parts = Path(beside).parts
    places = [i for i, part in enumerate(parts) if part == "snapshots"]
    if os.path.isdir(repository) or not places or places[-1] + 2 >= len(parts):
        raise ModelError(
            f"lacks {name}, which its config.json names: bstk init-repo writes such a directory",
            where=os.fspath(Path(beside).parent),
            reason="repository-file",
        )
    commit, *folders = parts[places[-1] + 1 : -1]
    return "/".join([f"hf://{repository}@{commit}", *folders, name])
