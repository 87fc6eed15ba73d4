"""A tokenizer as GGUF has it, from ``tokenizer.json`` and ``tokenizer_config.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bsformat.errors import ModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: How text is cut before it is tokenized, and what llama.cpp calls that.
_CUTS: Final = {
    (("Split", _WORDS % r"\p{N}{1,3}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", _WORDS % r"\p{N}"), ("ByteLevel", False)): "qwen2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("ByteLevel", True),): "gpt-2",
}
_SPECIAL: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
#: Of the score of a piece that no merge makes.
_LAST: Final = -1e6


@dataclass(slots=True)
class GgufTokenizer:
    """What `write` adds to a GGUF file.

    Attributes:
        model: ``gpt2`` for byte-level BPE, ``llama`` for BPE over words with bytes to fall back on.
        tokens, types, scores, merges: of the vocabulary; scores for ``llama``, merges for ``gpt2``.
        cut: how text is cut, for ``gpt2``. notes: what could not be said, for people.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    cut: str = ""
    special: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    chat_template: str = ""
    notes: list[str] = field(default_factory=list)

    def write(self, writer: Any) -> None:
        """Add it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.cut:
            writer.add_tokenizer_pre(self.cut)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        for name, value in self.adds.items():
            getattr(writer, f"add_{name}")(value)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def gguf_tokenizer(files: Mapping[str, bytes], vocabulary: int, where: str) -> GgufTokenizer:
    """A tokenizer from the files of a model.

    Args:
        vocabulary: rows of the embedding; tokens beyond those of the tokenizer are marked as unused.

    Raises:
        ModelError: reason ``export-tokenizer``: there is none, or GGUF has no such tokenizer.
    """
    tokenizer, settings = _json(files, "tokenizer.json", where), _json(files, "tokenizer_config.json", where)
    if not tokenizer:
        raise _refused("holds no tokenizer.json, without which a GGUF file has no tokenizer", where)
    try:
        made = _made(tokenizer, vocabulary, where)
        _add_special(made, tokenizer, settings)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _refused(f"has a tokenizer.json that cannot be read: {error!r}"[:300], where) from None
    template = files.get("chat_template.jinja", b"").decode(errors="replace") or settings.get("chat_template")
    made.chat_template = template if isinstance(template, str) else ""
    return made


def _made(tokenizer: dict[str, Any], vocabulary: int, where: str) -> GgufTokenizer:
    model = tokenizer["model"]
    kind = model.get("type", "BPE")
    byte_level = "ByteLevel" in json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")])
    if kind != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise _refused(
            f"has a tokenizer of the type {kind}: GGUF takes BPE over bytes, or with bytes to fall back on", where
        )
    added = tokenizer.get("added_tokens") or []
    numbers = {number: text for text, number in model["vocab"].items()} | {t["id"]: t["content"] for t in added}
    if not all(type(n) is int and n >= 0 and isinstance(text, str) for n, text in numbers.items()):
        raise ValueError("a token has no number")
    left_out = {numbers.pop(n) for n in sorted(numbers) if n >= vocabulary}
    notes = [f"{len(left_out)} tokens are left out: the embedding has no rows for them"] if left_out else []
    control = {t["id"] for t in added if t.get("special")}
    user = {t["id"] for t in added} - control
    tokens = [numbers.get(n, f"[PAD{n}]") for n in range(vocabulary)]
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    pairs = [pair for pair in pairs if "".join(pair) not in left_out] if left_out else pairs
    types = [
        _CONTROL if n in control else _USER if n in user else _NORMAL if n in numbers else _UNUSED
        for n in range(vocabulary)
    ]
    if byte_level:
        cut = _CUTS.get(_cuts(tokenizer.get("pre_tokenizer")), "")
        if not cut:
            notes.append("text is cut in a way that llama.cpp has no name for: tokenizer.ggml.pre is default")
        merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
        return GgufTokenizer("gpt2", tokens, types, merges=merges, cut=cut or "default", notes=notes)
    rank: dict[str, int] = {}
    for pair in pairs:
        rank.setdefault("".join(pair), len(rank))
    scores = [float(-rank[token]) if token in rank else _LAST for token in tokens]
    for n, token in enumerate(tokens):
        if types[n] == _NORMAL and len(token) == 6 and token.startswith("<0x"):
            types[n] = _BYTE
        elif token == model.get("unk_token"):
            types[n] = _UNKNOWN
    made = GgufTokenizer("llama", tokens, types, scores=scores, notes=notes)
    made.adds["add_space_prefix"] = _puts_space(tokenizer)
    return made


def _cuts(pre: Any) -> tuple[tuple[str, Any], ...]:
    """How text is cut, as a key of `_CUTS`."""
    if not isinstance(pre, dict):
        return ()
    if pre.get("type") == "Sequence":
        return tuple(cut for part in pre["pretokenizers"] for cut in _cuts(part))
    said = {
        "Split": pre.get("pattern", {}).get("Regex"),
        "Digits": pre.get("individual_digits"),
        "ByteLevel": pre.get("use_regex", True),
    }
    return ((str(pre.get("type")), said.get(str(pre.get("type")))),)


def _puts_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a space is put before text."""
    parts = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return '"Prepend"' in parts or '"prepend_scheme": "first"' in parts or '"prepend_scheme": "always"' in parts


def _add_special(made: GgufTokenizer, tokenizer: dict[str, Any], settings: dict[str, Any]) -> None:
    number = {token: n for n, token in reversed(list(enumerate(made.tokens)))}
    for name in _SPECIAL:
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in number:
            made.special[name] = number[text]
    post = tokenizer.get("post_processor") or {}
    steps = post.get("processors", [post])
    templates: list[Any] = [step["single"] for step in steps if step.get("type") == "TemplateProcessing"]
    single = templates[0] if templates else []
    around = [item["SpecialToken"]["id"] if "SpecialToken" in item else None for item in single]
    for name, found in (("bos", around[:1]), ("eos", around[-1:])):
        said = settings.get(f"add_{name}_token")
        own = name in made.special and found == [made.tokens[made.special[name]]]
        made.adds[f"add_{name}_token"] = said if isinstance(said, bool) else own


def _json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _refused(f"has a {name} that is no JSON object", where)
    return value


def _refused(what: str, where: str) -> ModelError:
    return ModelError(what, where=where, reason="export-tokenizer")
