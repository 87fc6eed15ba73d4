"""A model at a budget as one GGUF file, for llama.cpp and whatever else reads those."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bsformat.errors import ModelError, WriteError
from bsformat.registry import FLOAT_DTYPES

from .export import Exported, attached, usual_dtype
from .gguf_model import GgufModel, gguf_model
from .gguf_tokenizer import gguf_tokenizer
from .placing import new_file
from .progress import Reporter, Silent
from .rebuilding import Prefix, opened
from .repository import model_config, model_name

Array = npt.NDArray[Any]

#: Types that weights are stored in, and what GGUF calls them; the package rounds to the last five of them.
TYPES: Final = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "q8_0": "Q8_0",
    "q5_1": "Q5_1",
    "q5_0": "Q5_0",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0",
}
_FLOATS: Final = frozenset({"F16", "BF16", "F32"})
#: Embedding and output head, which lose most by few bits, have at least this type.
_ENDS: Final = ("token_embd.weight", "output.weight")
_ENDS_TYPE: Final = "Q8_0"
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tensor of the file: its name in transformers ("" for what is computed), its type in GGUF, shape and bytes."""

    source: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


def export_gguf(
    uri: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    budget: int | str = "100%",
    dtype: str | None = None,
    replace: bool = False,
    report: Reporter | None = None,
    **options: Any,
) -> Exported:
    """Write a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model.

    Every matrix is the value that the blocks of the budget define (spec §6.3), rounded once where ``dtype`` is a type
    of floating-point numbers; other types round that in float32 as the gguf package does it, embedding and output head
    to ``q8_0`` at least. Vectors are float32. A matrix whose rows are no multiple of what a type rounds together is
    float16. Memory holds one tensor, and the blocks of it.

    Args:
        uri, budget, options: as of `bitstack.export.export_safetensors`.
        path: the file; it appears when it is complete.
        dtype: one of `TYPES`; None: what most of the weights were before packing.
        replace: whether a file that is there may be replaced.

    Raises:
        ModelError: the package gguf is missing, GGUF has no such architecture or tokenizer, or a weight is beyond what
            the type holds. WriteError: the file is there, or cannot be written. SourceError, FormatError, BudgetError:
            as `bsformat.open`.
    """
    place = Path(path).absolute()
    if find_spec("gguf") is None:
        raise ModelError("writing GGUF needs the package gguf: pip install 'bitstack[gguf]'", reason="export-type")
    if dtype is not None and dtype not in TYPES:
        raise ModelError(f"{dtype!r} is none of the types {', '.join(TYPES)}", reason="export-type")
    if os.path.lexists(place) and not replace:
        raise WriteError("exists already; --force replaces it", where=os.fspath(path), reason="output-exists")
    report = report or Silent()
    with opened(uri, budget, place, report=report, **options) as prefix:
        container = prefix.container
        model = gguf_model(model_config(container), container.uri)
        _check_shapes(prefix, model)
        tokenizer = gguf_tokenizer(attached(container), model.vocabulary, container.uri)
        chosen = dtype or usual_dtype(container)
        planned, notes = _plan(prefix, model, TYPES[chosen])
        with new_file(place) as out:
            writer = _writer(prefix, model, chosen)
            tokenizer.write(writer)
            _write(writer, out, prefix, model, planned, report)
        return Exported(
            os.fspath(place),
            [place.name],
            "gguf",
            chosen,
            container.root,
            prefix.plan.n_blocks,
            len(container),
            prefix.plan.resident_bytes,
            len(planned),
            sum(item.nbytes for item in planned.values()),
            tokenizer.notes + notes,
        )


def _check_shapes(prefix: Prefix, model: GgufModel) -> None:
    """Refuse a file whose tensors are not those that its configuration speaks of, before anything follows from it."""
    wanted = {"model.embed_tokens.weight": (model.vocabulary, model.width)}
    for layer in range(min(model.layers, len(prefix.tensors))):
        for part, heads in (("q_proj", model.heads), ("k_proj", model.kv_heads)):
            wanted[f"model.layers.{layer}.self_attn.{part}.weight"] = (heads * model.head_dim, model.width)
    for name, shape in wanted.items():
        tensor = prefix.tensors.get(name)
        if tensor is None or prefix.shape(tensor) != shape:
            raise ModelError(
                f"holds no {name} of {shape[0]} rows of {shape[1]}, as its config.json says",
                where=prefix.container.uri,
                reason="export-architecture",
            )


def _plan(prefix: Prefix, model: GgufModel, kind: str) -> tuple[dict[str, _Planned], list[str]]:
    """The tensors of the file by their names in GGUF, in its order; and what is not of the type that was asked for."""
    import gguf

    names = model.names()
    out: dict[str, _Planned] = {}
    others = 0
    if (factors := model.rope_factors()) is not None:
        out["rope_freqs.weight"] = _Planned("", "F32", factors.shape, factors.nbytes)
    for source, tensor in prefix.tensors.items():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None or not (tensor.packed or tensor.dtype in FLOAT_DTYPES):
            raise ModelError(
                f"has a tensor {source!r} that GGUF's {model.architecture} has no place for; safetensors take any",
                where=prefix.container.uri,
                reason="export-architecture",
            )
        shape = prefix.shape(tensor)
        own = kind if len(shape) >= _MATRIX else "F32"
        if own not in _FLOATS:
            own = _ENDS_TYPE if name in _ENDS else own
            if shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[own]][0]:
                own = "F16"
                others += 1
        elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[own]]
        out[name] = _Planned(source, own, shape, prod(shape) // elements * size)
    notes = [f"{others} matrices are float16: their rows are no multiple of what {kind} rounds together"]
    return out, notes if others else []


def _writer(prefix: Prefix, model: GgufModel, dtype: str) -> Any:
    import gguf

    container = prefix.container
    writer = gguf.GGUFWriter(None, model.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(model_name(container) or "model")
    kind = "ALL_F32" if dtype == "float32" else f"MOSTLY_{TYPES[dtype]}"
    writer.add_file_type(gguf.LlamaFileType[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("bstk.root", container.root)
    writer.add_uint32("bstk.blocks", prefix.plan.n_blocks)
    model.write(writer)
    return writer


def _write(
    writer: Any, out: Path, prefix: Prefix, model: GgufModel, planned: Mapping[str, _Planned], report: Reporter
) -> None:
    import gguf

    for name, item in planned.items():
        kind = gguf.GGMLQuantizationType[item.type]
        writer.add_tensor_info(name, item.shape, np.dtype(np.float32), item.nbytes, raw_dtype=kind)
    total = sum(item.nbytes for item in planned.values())
    try:
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with report.stage("export", total, "B") as advance:
            for item in planned.values():
                writer.write_tensor_data(_stored(prefix, model, item))
                advance(item.nbytes)
    finally:
        writer.close()


def _stored(prefix: Prefix, model: GgufModel, item: _Planned) -> Array:
    """The bytes of a tensor as the file has them."""
    import gguf

    if not item.source:
        factors = model.rope_factors()
        return np.empty(0) if factors is None else factors
    floats = item.type if item.type in _FLOATS else "F32"
    value = model.arranged(item.source, prefix.value(prefix.tensors[item.source], floats))
    if item.type in _FLOATS:
        return value
    stored: Array = gguf.quantize(value, gguf.GGMLQuantizationType[item.type])
    return stored
