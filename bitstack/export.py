"""A model at a budget as a standard checkpoint: a directory of safetensors that knows nothing of this project.

config.json                         of the model, as transformers writes it, and as it did before version 5
generation_config.json, tokenizer files
model.safetensors                   or model-00001-of-0000N.safetensors and model.safetensors.index.json
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bsformat import Container
from bsformat.errors import ModelError

from .checkpoint import TOKENIZER_FILES
from .hub_layout import HubLayout
from .placing import check_folder, new_folder
from .progress import Reporter, Silent
from .rebuilding import Prefix, opened
from .repository import model_config, weight_type
from .safetensors_file import Planned, shards, write_header

#: Types of an export by the names of torch, and by those of safetensors.
DTYPES: Final = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
#: Of one file, in bytes of tensors: what the hub takes well.
SHARD_BYTES: Final = 5 * 10**9
#: Attachments that become files: what is run as code never does.
_FILES: Final = ("generation_config.json", *TOKENIZER_FILES)
_OURS: Final = re.compile(
    "|".join(map(re.escape, ("config.json", "model.safetensors.index.json", *_FILES)))
    + r"|model(-\d{5}-of-\d{5})?\.safetensors"
)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made.

    Attributes:
        path: the directory or file. files: the names in the directory, or of the file.
        format: ``safetensors`` or ``gguf``. dtype: that of the weights.
        root: of the ``.bstk``. n_blocks, total_blocks, resident_bytes: what the budget bought of it.
        tensors, size: how many tensors there are, and their bytes.
        notes: what differs from what was asked for, for people.
    """

    path: str
    files: list[str]
    format: str
    dtype: str
    root: str
    n_blocks: int
    total_blocks: int
    resident_bytes: int
    tensors: int
    size: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def export_safetensors(
    uri: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    budget: int | str = "100%",
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
    report: Reporter | None = None,
    **options: Any,
) -> Exported:
    """Write a directory that transformers, and whatever reads its checkpoints, loads as a dense model.

    Every weight is the value that the blocks of the budget define (spec §6.3), rounded once. Tied weights are there
    once. Memory holds one tensor, and the blocks of it.

    Args:
        uri: the ``.bstk``: a path, ``http(s)://``, ``s3://``, anything fsspec opens.
        folder: the directory; it appears when it is complete.
        budget: a size or a percentage of all blocks.
        dtype: ``float16``, ``bfloat16`` or ``float32``; None: what most of the weights were before packing.
        shard_bytes: of the tensors of one file; a larger tensor has one of its own.
        replace: whether a directory that an export wrote may be replaced.
        options: those of `bsformat.open`: root, network, storage options.

    Raises:
        WriteError: the folder is there or holds something else, or cannot be written. ModelError: the file holds no
            configuration, or a weight is beyond what the type holds. SourceError, FormatError, BudgetError: as
            `bsformat.open`.
    """
    place = Path(folder).resolve()
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"{dtype!r} is none of the types {', '.join(DTYPES)}", reason="export-type")
    check_folder(place, ours=_OURS, replace=replace)
    report = report or Silent()
    with opened(uri, budget, place, report=report, **options) as prefix:
        container = prefix.container
        chosen = dtype or usual_dtype(container)
        config = standard_config(model_config(container), chosen)
        own = _planned(prefix, DTYPES[chosen])
        layout = HubLayout(container, own)
        tensors = layout.tensors
        with new_folder(place, ours=_OURS, replace=replace) as out:
            _write_shards(prefix, DTYPES[chosen], own, layout, out, shard_bytes, report)
            (out / "config.json").write_bytes(_json(config))
            for name, data in attached(container).items():
                (out / name).write_bytes(data)
        return Exported(
            os.fspath(place),
            sorted(item.name for item in place.iterdir()),
            "safetensors",
            chosen,
            container.root,
            prefix.plan.n_blocks,
            len(container),
            prefix.plan.resident_bytes,
            len(tensors),
            sum(tensor.nbytes for tensor in tensors),
            [],
        )


def usual_dtype(container: Container) -> str:
    """The type that most of the weights had before packing, by the name of torch."""
    kept = weight_type(container)
    return next((name for name, other in DTYPES.items() if other == kept), "float32")


def attached(container: Container) -> dict[str, bytes]:
    """Generation configuration and tokenizer files, as any version of transformers reads them."""
    files = {
        item.name: container.attachment(item.name) for item in container.metadata.attachments if item.name in _FILES
    }
    try:
        settings = json.loads(files["tokenizer_config.json"])
        if settings["tokenizer_class"] == "TokenizersBackend":  # what version 5 calls it
            files["tokenizer_config.json"] = _json(settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    return files


def standard_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration with the keys of transformers 5, and with those that versions before it, and others, look for."""
    made = {key: value for key, value in config.items() if key != "quantization_config"}
    made |= {"dtype": dtype, "torch_dtype": dtype}
    rope = made.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        made["rope_theta"] = rope["rope_theta"]
        made["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return made


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _planned(prefix: Prefix, dtype: str) -> list[Planned]:
    floats = {"F64", "F32", "F16", "BF16"}
    return [
        Planned(name, dtype if tensor.packed or tensor.dtype in floats else tensor.dtype, prefix.shape(tensor))
        for name, tensor in prefix.tensors.items()
    ]


def _write_shards(
    prefix: Prefix,
    dtype: str,
    own: Sequence[Planned],
    layout: HubLayout,
    folder: Path,
    shard_bytes: int,
    report: Reporter,
) -> None:
    tensors, source = layout.tensors, layout.sources
    planned = {tensor.name: tensor for tensor in own}
    files = shards(tensors, shard_bytes)
    about = {"format": "pt", "bstk_root": prefix.container.root, "bstk_blocks": str(prefix.plan.n_blocks)}
    total = sum(tensor.nbytes for tensor in tensors)
    where: dict[str, str] = {}
    parts: dict[str, Any] = {}
    with report.stage("export", total, "B") as advance:
        for number, held in enumerate(files, 1):
            name = f"model-{number:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors"
            with open(folder / name, "wb") as out:
                write_header(out, held, about)
                for tensor in held:
                    if tensor.name not in parts:
                        whole = planned[source[tensor.name]]
                        parts = layout.parts(whole, prefix.value(prefix.tensors[whole.name], dtype))
                    out.write(parts.pop(tensor.name).data)
                    where[tensor.name] = name
                    advance(tensor.nbytes)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_bytes(_json(index))
