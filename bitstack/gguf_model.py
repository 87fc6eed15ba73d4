"""What a GGUF file says of a model: the names of its tensors and its hyperparameters, as llama.cpp expects them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bsformat.errors import ModelError

Array = npt.NDArray[Any]

#: Model types of transformers, and the architectures of GGUF that compute the same.
_ARCHITECTURES: Final = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
#: Those whose rows of q and k are in another order: llama.cpp turns neighbours by one angle, transformers halves.
_PERMUTED: Final = frozenset({"llama"})
_ROPES: Final = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model as GGUF knows it.

    Attributes:
        architecture: its name in GGUF. layers, heads, kv_heads, head_dim, width, inner: of the model. vocabulary: rows
            of its embedding. context: positions.
        rope: its parameters as transformers 5 has them.
    """

    architecture: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    epsilon: float
    rope: Mapping[str, Any]
    where: str

    def names(self) -> Any:
        """Maps the names of transformers to those of GGUF: `gguf.TensorNameMap`."""
        import gguf

        arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        return gguf.get_tensor_name_map(arch, self.layers)

    def arranged(self, name: str, value: Array) -> Array:
        """A tensor, by its name in transformers, with its rows in the order of GGUF."""
        if self.architecture not in _PERMUTED:
            return value
        for part, heads in ((".q_proj.", self.heads), (".k_proj.", self.kv_heads)):
            if part in name:
                turned = value.reshape(heads, 2, self.head_dim // 2, *value.shape[1:]).swapaxes(1, 2)
                return np.ascontiguousarray(turned.reshape(value.shape))
        return value

    def write(self, writer: Any) -> None:
        """Add the hyperparameters to a `gguf.GGUFWriter`."""
        import gguf

        writer.add_context_length(self.context)
        writer.add_embedding_length(self.width)
        writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.inner)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_vocab_size(self.vocabulary)
        writer.add_rope_freq_base(float(self.rope.get("rope_theta", 10000.0)))
        kind = self.rope.get("rope_type", "default")
        if kind in ("linear", "yarn"):
            writer.add_rope_scaling_type(getattr(gguf.RopeScalingType, kind.upper()))
            writer.add_rope_scaling_factor(self._rope("factor"))
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(int(self._rope("original_max_position_embeddings", self.context)))

    def rope_factors(self) -> Array | None:
        """What each frequency is divided by, float32 [head_dim / 2], where that is not one number (Llama 3.1)."""
        if self.rope.get("rope_type", "default") != "llama3":
            return None
        factor, low, high = (self._rope(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        former = self._rope("original_max_position_embeddings")
        frequencies = float(self.rope.get("rope_theta", 10000.0)) ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        turns = former * frequencies / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 / ((1 - smooth) / factor + smooth)).astype("<f4")

    def _rope(self, key: str, usual: float | None = None) -> float:
        value = self.rope.get(key, usual)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ModelError(f"its config.json has no usable {key} for its rotary embedding", where=self.where)
        return float(value)


def gguf_model(config: Mapping[str, Any], where: str) -> GgufModel:
    """A model by its configuration, as transformers 5 or versions before it write it.

    Raises:
        ModelError: reason ``export-architecture``: GGUF has no architecture that computes the same, or the
            configuration says nothing usable.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise _refused(
            f"is a {kind!r} model: there is a mapping to GGUF for {known}; --to safetensors takes any", where
        )
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        rope = (config.get("rope_scaling") or {}) | {"rope_theta": config.get("rope_theta", 10000.0)}
    if rope.get("rope_type", "default") not in _ROPES or "rope_theta" not in rope:
        raise _refused(
            f"has rotary embeddings of the type {rope.get('rope_type')!r}, not of {', '.join(_ROPES)}", where
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or config.get("hidden_act", "silu") != "silu":
        raise _refused("turns a part of each head, or has another activation than silu: GGUF cannot say so", where)
    width, heads = _number(config, "hidden_size", where), _number(config, "num_attention_heads", where)
    head_dim = _number(config, "head_dim", where, width // heads)
    if head_dim % 2:
        raise _refused(f"has heads of {head_dim} dimensions, which cannot be turned in pairs", where)
    return GgufModel(
        _ARCHITECTURES[kind],
        _number(config, "num_hidden_layers", where),
        width,
        _number(config, "intermediate_size", where),
        heads,
        _number(config, "num_key_value_heads", where, heads),
        head_dim,
        _number(config, "vocab_size", where),
        _number(config, "max_position_embeddings", where),
        float(config.get("rms_norm_eps", 1e-6)),
        rope,
        where,
    )


def _number(config: Mapping[str, Any], key: str, where: str, usual: int | None = None) -> int:
    value = config.get(key)
    value = usual if value is None else value
    if type(value) is not int or not 0 < value < 1 << 31:
        raise _refused(f"its config.json has no usable {key}", where)
    return value


def _refused(what: str, where: str) -> ModelError:
    return ModelError(what, where=where, reason="export-architecture")
