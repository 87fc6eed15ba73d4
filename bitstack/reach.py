"""How long a text a model can read: for how many tokens it has positions."""

from typing import Any, Final

from bsformat import Container
from bsformat.errors import BstkError

from .shell import harmless, read_json

#: Types of models that number positions from behind that of the padding token, and so read fewer tokens than they have
#: positions: RoBERTa and its kin.
_BEHIND_PADDING: Final = frozenset(
    {"camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta"}
    | {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)


def readable_tokens(config: Any) -> int | None:
    """Tokens of the longest sequence that a model of this configuration reads; None: it states no bound."""
    text = config.get_text_config(decoder=True)
    most = _count(getattr(text, "max_position_embeddings", None))
    if not most:
        return None
    if text.model_type in _BEHIND_PADDING and isinstance(text.pad_token_id, int):
        return max(1, most - text.pad_token_id - 1)
    # What rotary embeddings were stretched to is not always put into the configuration's own bound.
    rope = getattr(text, "rope_parameters", None) or {}
    factor, original = rope.get("factor"), _count(rope.get("original_max_position_embeddings"))
    return max(most, int(factor * original) if isinstance(factor, int | float) else 0)


def readable_tokens_of(container: Container) -> int | None:
    """`readable_tokens` of the model in a file; None as well where the file says nothing that can be understood."""
    from transformers import AutoConfig

    try:
        settings = read_json(container, "config.json")
        return readable_tokens(AutoConfig.for_model(settings.pop("model_type", None), **harmless(settings)))
    except BstkError:
        raise
    except Exception:  # transformers raises whatever it likes; loading the model names the cause
        return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
