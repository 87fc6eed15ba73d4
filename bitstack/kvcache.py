"""What the cache of keys and values takes, told from a configuration of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Types of layers that keep a window of tokens, and the setting that says how many.
_WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "reference_sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
#: Types of layers that keep nothing.
_NOTHING = frozenset({"moe", "mlp", "dummy"})
#: Types of layers that keep a state, whose size does not depend on the tokens.
_STATES = frozenset({"linear_attention", "mamba", "conv", "recurrent"})


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The cache of one layer, for one sequence.

    Attributes:
        token: elements of keys and values that a token takes.
        window: tokens that are kept; None: all.
        state: elements that do not depend on the tokens.
    """

    token: int
    window: int | None = None
    state: int = 0

    def tokens(self, context: int) -> int:
        """How many tokens are kept of ``context``."""
        return context if self.window is None else min(context, self.window)


def layer_caches(config: Any) -> list[LayerCache]:
    """The caches of all layers of a decoder, as transformers' `DynamicCache` keeps them; cross-attention after its own.

    A layer of a type that is not known counts as full attention. Latent attention (DeepSeek) counts as its expanded
    keys and values, which some versions of transformers keep and others do not.

    Args:
        config: of the whole model; of several, that of the decoder of text is taken.
    """
    text = config.get_text_config(decoder=True)
    own = list(_own(text))
    if getattr(config, "is_encoder_decoder", False):
        own += [LayerCache(_token_elements(text)) for _ in own]
    return own


def cache_elements(caches: list[LayerCache], context: int, batch: int) -> int:
    """Elements of a cache that holds ``context`` tokens of each of ``batch`` sequences."""
    return batch * sum(layer.tokens(context) * layer.token + layer.state for layer in caches)


def _own(text: Any) -> Iterator[LayerCache]:
    count = _whole(text, "num_decoder_layers", "decoder_layers", "num_hidden_layers")
    types = getattr(text, "layer_types", None)
    configs = list(getattr(text, "per_layer_config", None) or ())
    # The last layers of some models use what earlier ones have cached.
    shared = _whole(text, "num_kv_shared_layers")
    for number in range(count):
        config = configs[number] if len(configs) == count else text
        kind = str(types[number]) if types is not None and number < len(types) else _kind(config)
        if kind in _NOTHING or number >= count - shared > 0:
            yield LayerCache(0)
        elif kind in _STATES and (state := _state_elements(config)):
            yield LayerCache(0, state=state)
        else:
            window = _whole(config, _WINDOWS[kind]) if kind in _WINDOWS else 0
            yield LayerCache(_token_elements(config), window or None)


def _kind(config: Any) -> str:
    if _whole(config, "sliding_window"):
        return "sliding_attention"
    return "chunked_attention" if _whole(config, "attention_chunk_size") else "full_attention"


def _token_elements(config: Any) -> int:
    """Keys and values of one token in one layer."""
    heads = _whole(config, "num_attention_heads", "num_heads", "n_head")
    if _whole(config, "kv_lora_rank"):
        keys = _whole(config, "qk_nope_head_dim") + _whole(config, "qk_rope_head_dim")
        return heads * (keys + (_whole(config, "v_head_dim") or keys))
    width = _whole(config, "head_dim", "d_kv") or _whole(config, "hidden_size", "d_model") // max(1, heads)
    return 2 * _kv_heads(config, heads) * width


def _kv_heads(config: Any, heads: int) -> int:
    if getattr(config, "new_decoder_architecture", False):  # Falcon repeats them before it keeps them
        return heads
    if getattr(config, "multi_query", False):
        return 1
    return _whole(config, "num_key_value_heads") or heads


def _state_elements(config: Any) -> int:
    """The state of a layer of linear attention or of a state space, in elements; 0 where its names are not known."""
    names = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    heads, keys, values = (_whole(config, name) for name in names)
    if heads and keys and values:
        wide = 2 * _whole(config, "linear_num_key_heads") * keys + heads * values
        # The state is kept in float32: two elements of half precision.
        return 2 * heads * keys * values + wide * max(1, _whole(config, "linear_conv_kernel_dim"))
    wide = _whole(config, "intermediate_size", "mamba_intermediate_size")
    wide = _whole(config, "mamba_n_heads") * _whole(config, "mamba_d_head") or wide
    depth = _whole(config, "state_size", "ssm_state_size", "mamba_d_state")
    return 2 * wide * depth + 2 * wide * max(1, _whole(config, "conv_kernel", "mamba_d_conv")) if depth else 0


def _whole(config: Any, *names: str) -> int:
    """The first of these settings that is a number above 0; 0 if none is."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
