"""A transformers model without its weights, which takes blocks, and gives them up, while it runs.

Parameters are created on the meta device, so that the dense weights never exist; buffers that a module computes for
itself (rotary frequencies, say) are real.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from bitstack import kernels
from bsformat import Block, Container, Tensor
from bsformat.errors import BstkError, ModelError

from .change import Change
from .gate import Gate, gate_passes
from .layers import BitStackEmbedding, BitStackLinear, BitStackParameter
from .packed import PackedTensor
from .probe import use_eager_experts
from .siblings import find_siblings
from .targets import is_plain, is_plain_embedding
from .task import model_class, task_of

TORCH_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: Keys of a configuration that make transformers look for code outside of itself.
_CODE: Final = frozenset(
    {"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"}
)
_patching = threading.Lock()


class _Rooms:
    """What the chains of the tensors of a file come to hold when all of its blocks are resident."""

    def __init__(self, container: Container) -> None:
        index, forms = container.index, container.metadata.forms
        ranks = np.array([max(1, form.rank) for form in forms], dtype=np.int64)
        taken = np.array([kernels.segments(int(rank)) for rank in ranks], dtype=np.int64)
        chains = container.metadata.n_chains
        self._segments = np.bincount(index.chain, weights=taken[index.form], minlength=chains).astype(np.int64)
        self._rank = np.ones(chains, dtype=np.int64)
        np.maximum.at(self._rank, index.chain, ranks[index.form])
        self._sparse = np.zeros(chains, dtype=bool)
        self._sparse[index.chain[np.array([form.kind == "sparse" for form in forms])[index.form]]] = True

    def of(self, tensor: Tensor) -> kernels.Room:
        """Of the fullest chain of a packed tensor."""
        own = slice(tensor.first_chain, tensor.first_chain + tensor.n_chains)
        return kernels.Room(int(self._segments[own].max()), int(self._rank[own].max()), bool(self._sparse[own].any()))


class Shell:
    """A model that takes blocks: what the loader fills.

    Attributes:
        model: the transformers model. It runs once the required blocks are in.
        dtype: the floating type it computes in.
        gate: what every forward pass of the model goes through, and every change of its blocks.

    Args:
        device: where its weights go.
        model: one that fits the file, its parameters on the meta device; None: the one that the file describes.
    """

    def __init__(self, container: Container, *, device: torch.device, dtype: torch.dtype, model: Any = None) -> None:
        self.container, self._place, self.dtype = container, device, dtype
        self.model = empty_model(container, dtype) if model is None else model
        self._packed: dict[str, PackedTensor] = {}
        self._rooms = _Rooms(container)
        self._scale_of: dict[str, list[tuple[PackedTensor, str]]] = {}
        for tensor in container.model_tensors.values():
            if tensor.packed:
                self._install(tensor)
        find_siblings(self.model)
        for _, buffer, owner, name in _named_buffers(self.model):
            owner._buffers[name] = buffer.to(device)
        self.gate = Gate()
        gate_passes(self.model, self.gate)

    @property
    def device(self) -> torch.device:
        """Where the weights are now: the model may have been moved since it was loaded."""
        return next((p.device for p in self._packed.values() if p.row_scale is not None), self._place)

    @property
    def widening(self) -> int:
        """Bytes that raw tensors take in ``dtype`` beyond what they take in the file; may be negative."""
        raw = (t for t in self.container.model_tensors.values() if not t.packed)
        return sum((self._itemsize(t) - TORCH_DTYPES[t.dtype].itemsize) * prod(t.shape) for t in raw)

    def _itemsize(self, tensor: Tensor) -> int:
        stored = TORCH_DTYPES[tensor.dtype]
        return int((self.dtype if stored.is_floating_point else stored).itemsize)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights that are in the model now, counted from its tensors; what several share counts once."""
        own: dict[int, int] = {t.data_ptr(): t.nbytes for t in self.model.state_dict().values() if not t.is_meta}
        for packed in self._packed.values():
            own |= {scale.data_ptr(): scale.nbytes for scale in packed.scale_vectors}
        blocks = (p.nbytes - sum(s.nbytes for s in p.scale_vectors) for p in self._packed.values())
        return sum(own.values()) + sum(blocks)

    def change(self) -> Change:
        """An empty change of the blocks that are in the model."""
        return Change(self._packed, self._put_raw, self.device)

    @contextmanager
    def exclusive(self, wanted: Callable[[], bool]) -> Iterator[bool]:
        """Within it no pass runs, and on a GPU nothing that earlier ones have begun: then blocks may change.

        Gives False, and is not so, once the change is not ``wanted`` any more.
        """
        devices = {p.device for p in self._packed.values() if p.device.type == "cuda"}
        for device in devices:  # most of what was enqueued is waited for while passes go on
            torch.cuda.synchronize(device)
        with self.gate.changing(wanted) as granted:
            # What was enqueued reads the tables, and blocks that are about to be freed, on streams that nobody knows.
            for device in devices:
                torch.cuda.synchronize(device)
            try:
                yield granted
            finally:
                for device in devices:  # nor do those of later passes wait for the stream that wrote the tables
                    torch.cuda.synchronize(device)

    def release(self) -> None:
        """Give memory of the GPU that is free, but still held for this process, back to the driver."""
        if any(packed.device.type == "cuda" for packed in self._packed.values()):
            torch.cuda.empty_cache()

    def _put_raw(self, block: Block, data: torch.Tensor) -> None:
        value = data.view(TORCH_DTYPES[block.tensor.dtype]).view(block.tensor.shape)
        if block.tensor.name in self._scale_of:
            for packed, which in self._scale_of[block.tensor.name]:
                packed.set_scales(**{which: value})
        else:
            self._assign(block.tensor, value)

    def check_complete(self) -> None:
        """Refuse a model that has parameters which the file does not hold.

        Raises:
            ModelError: naming the first of them.
        """
        for name, value in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if value.is_meta:
                raise ModelError(
                    f"the file holds no tensor {name!r}, which this architecture needs: it was packed with another "
                    "version of transformers, or damaged on purpose",
                    where=self.container.uri,
                    reason="model-incomplete",
                )

    def _names(self, name: str) -> list[str]:
        return [name, *(alias for alias, target in self.container.metadata.aliases.items() if target == name)]

    def _install(self, tensor: Tensor) -> None:
        packed = PackedTensor(tensor, self._rooms.of(tensor))
        self._packed[tensor.name] = packed
        for number, which in ((tensor.row_scale, "row_scale"), (tensor.col_scale, "col_scale")):
            self._scale_of.setdefault(self.container.tensors[number].name, []).append((packed, which))
        for name in self._names(tensor.name):
            path, attribute = self._owner(name)
            module = self.model.get_submodule(path)
            self._check_shape(tensor, getattr(module, attribute), name)
            if attribute not in module._parameters:
                raise self._unfit(name, "is packed, but no parameter of this architecture")
            if attribute != "weight" or not is_plain(module):
                use_eager_experts(module)
                BitStackParameter(packed, self.dtype).install(module, attribute)
                continue
            new: nn.Module
            if is_plain_embedding(module):
                new = BitStackEmbedding(packed, module.padding_idx, self.dtype)
            else:
                new = BitStackLinear(packed, module.bias, self.dtype)
            parent, _, child = path.rpartition(".")
            setattr(self.model.get_submodule(parent), child, new)

    def _assign(self, tensor: Tensor, value: torch.Tensor) -> None:
        value = value.to(self.dtype) if value.is_floating_point() else value
        for name in self._names(tensor.name):
            path, attribute = self._owner(name)
            module = self.model.get_submodule(path)
            self._check_shape(tensor, getattr(module, attribute), name)
            if attribute in module._parameters:
                module._parameters[attribute] = nn.Parameter(value, requires_grad=False)
            else:
                module._buffers[attribute] = value

    def _owner(self, name: str) -> tuple[str, str]:
        path, _, attribute = name.rpartition(".")
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            raise self._unfit(name, "has no place in this architecture") from None
        if module._parameters.get(attribute) is None and module._buffers.get(attribute) is None:
            raise self._unfit(name, "has no place in this architecture")
        return path, attribute

    def _check_shape(self, tensor: Tensor, place: torch.Tensor, name: str) -> None:
        shape = (*tensor.shape[:-2], *tensor.shape[-2:][::-1]) if tensor.transposed else tensor.shape
        if tuple(place.shape) != shape:
            raise self._unfit(name, f"has shape {list(shape)}, the architecture expects {list(place.shape)}")

    def _unfit(self, name: str, what: str) -> BstkError:
        return ModelError(f"tensor {name!r} {what}", where=self.container.uri, reason="model-mismatch")


def empty_model(container: Container, dtype: torch.dtype) -> Any:
    """The model that ``config.json`` describes, with all parameters on the meta device.

    Raises:
        ModelError: this version of transformers cannot build it.
    """
    from transformers import AutoConfig, GenerationConfig

    settings = read_json(container, "config.json")
    kind = settings.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **harmless(settings))
        with meta_parameters():
            build: Any = model_class(task_of(config)).from_config
            model = build(config, dtype=dtype, trust_remote_code=False)
        if any(a.name == "generation_config.json" for a in container.metadata.attachments):
            model.generation_config = GenerationConfig.from_dict(read_json(container, "generation_config.json"))
    except BstkError as error:
        raise ModelError(error.message, where=container.uri, reason=error.reason) from None
    except Exception as error:  # transformers raises whatever it likes on a configuration that makes no sense
        detail = " ".join(str(error).split())[:300]
        raise ModelError(
            f"this version of transformers cannot build a {kind!r} model from its configuration: {detail}",
            where=container.uri,
            reason="model-config",
        ) from None
    return model.eval()


def harmless(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what names code to fetch and run, in nested ones too."""
    return {
        key: harmless(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in _CODE
    }


def read_json(container: Container, name: str) -> dict[str, Any]:
    """An attached file as an object of JSON.

    Raises:
        ModelError: it is none.
    """
    try:
        value = json.loads(container.attachment(name))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError(f"its {name} is no JSON object", where=container.uri, reason="model-config")
    return value


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Within it, every parameter that a module registers becomes a meta tensor of the same shape and type.

    A module allocates its parameter without touching the memory and registers it at once, so that at most one exists,
    unwritten, at any time; initialisation then runs on meta tensors, which do nothing.
    """
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(self, name, param)
        if param is not None and not param.is_meta:  # one that is tied to another stays the same object
            self._parameters[name] = nn.Parameter(param.detach().to("meta"), requires_grad=False)

    with _patching:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = original  # type: ignore[method-assign]


def _named_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, nn.Module, str]]:
    for path, module in model.named_modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and not buffer.is_meta:
                yield f"{path}.{name}", buffer, module, name
