"""Elastic language models: pack once, load any prefix that fits, grow and shrink while it runs.

    model = bitstack.load("model.bstk", budget="80MiB")     # a transformers model: model.generate(...)
    model.bitstack.resize("120MiB")

Importing this package imports no torch; its attributes do, when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bsformat import __version__

if TYPE_CHECKING:
    from .api import Elastic, load
    from .attached import load_tokenizer
    from .automatic import govern
    from .evaluation import perplexity
    from .layers import BitStackEmbedding, BitStackLinear
    from .needs import Use
    from .pipeline import Packed, pack
    from .recipe import Recipe
    from .recipe_file import load_recipe
    from .transformers import BitStackConfig

_HOMES = {
    "BitStackConfig": "transformers",
    "BitStackEmbedding": "layers",
    "BitStackLinear": "layers",
    "Elastic": "api",
    "Packed": "pipeline",
    "Recipe": "recipe",
    "Use": "needs",
    "govern": "automatic",
    "load": "api",
    "load_recipe": "recipe_file",
    "load_tokenizer": "attached",
    "pack": "pipeline",
    "perplexity": "evaluation",
}

__all__ = [
    "BitStackConfig",
    "BitStackEmbedding",
    "BitStackLinear",
    "Elastic",
    "Packed",
    "Recipe",
    "Use",
    "__version__",
    "govern",
    "load",
    "load_recipe",
    "load_tokenizer",
    "pack",
    "perplexity",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
