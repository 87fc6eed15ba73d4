"""What a model takes beside its weights: the cache of a context, and what a pass through it holds at its peak.

Sums over the tensors that transformers' and our code hold at once, not measurements: the tests hold them against the
allocations of real passes, and they may be above those, but not below.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch

from bsformat import Container, Tensor

from .kvcache import LayerCache, cache_elements, layer_caches
from .reach import readable_tokens

#: Tokens of a context where none is stated, or what the model can read, if that is less.
CONTEXT: Final = 4096
#: Bytes that our kernels hold at once on a CPU, whatever the model: tiles of W and tables of sums, and what the
#: compiled loops and the libraries behind them take when they first run.
CPU_KERNELS: Final = 80 << 20
#: What the heap of a CPU keeps beyond what is in use, of cache, activations and logits. A cache that grows by a token
#: is a new tensor of another size; as glibc is by default, the holes that they leave fill up slowly: measured 5 with
#: 1536 tokens of SmolLM2-135M (`tools/bench/heap.py`), and nothing with a steady heap (`bitstack.loader.steady_heap`).
CPU_HEAP: Final = 6.0
CPU_HEAP_STEADY: Final = 0.25
#: Elements of W that are rebuilt at once on a GPU, where a matrix has as many.
CUDA_ELEMENTS: Final = 1 << 26
#: Bytes of a GPU that libraries and compiled kernels take when they first run, and of the sums for a few tokens.
CUDA_LIBRARIES: Final = 160 << 20
#: Bytes of a table of the GPU for each block.
CUDA_BLOCK: Final = 72
#: Types of models that send every token through every expert.
EVERY_EXPERT: Final = frozenset({"llama4", "llama4_text"})
#: Rows of logits that `bitstack.evaluation` turns into losses at once.
LOSS_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Use:
    """How a model is going to be used.

    Attributes:
        context: tokens of one sequence, prompt and answer together; None: `CONTEXT`.
        batch: sequences at once.
        prompt: the most tokens of a sequence that go through the model in one pass; None: all of the context.
        together: whether all sequences go through the model in one pass, or each in passes of its own.
        logits: whether a pass says something about its last tokens or about all of them.
        cached: whether keys and values are kept at all.
    """

    context: int | None = None
    batch: int = 1
    prompt: int | None = None
    together: bool = True
    logits: Literal["last", "all"] = "last"
    cached: bool = True

    def __post_init__(self) -> None:
        for name, value in (("context", self.context), ("batch", self.batch), ("prompt", self.prompt)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model takes beside its weights; see `bitstack.loader.Needs`.

    Attributes:
        context, batch: tokens of a sequence, and sequences at once.
        cache_bytes: keys and values of them all.
        workspace: what a pass holds at its peak: name -> bytes.
        cache_shape: how the cache comes about, in a few words.
    """

    context: int
    batch: int
    cache_bytes: int
    workspace: dict[str, int]
    cache_shape: str

    @property
    def workspace_bytes(self) -> int:
        """All that a pass holds at its peak."""
        return sum(self.workspace.values())

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "context": self.context,
            "batch": self.batch,
            "cache_bytes": self.cache_bytes,
            "cache_shape": self.cache_shape,
            "workspace_bytes": self.workspace_bytes,
            "workspace": dict(self.workspace),
        }


def needs_of(
    model: Any, container: Container, device: torch.device, dtype: torch.dtype, use: Use, *, steady: bool = True
) -> Needs:
    """What a model of a file needs for a use.

    Args:
        model: the transformers model, as `bitstack.shell.Shell` builds it; its parameters may be on the meta device.
        device, dtype: where it runs, and what it computes in.
        steady: whether the C library gives large tensors pages of their own.
    """
    text = model.config.get_text_config(decoder=True)
    context = use.context or min(CONTEXT, readable_tokens(model.config) or CONTEXT)
    prompt = min(use.prompt or context, context)
    caches = layer_caches(model.config) if use.cached and model.can_generate() else []
    itemsize = dtype.itemsize
    cache = itemsize * cache_elements(caches, context, use.batch)
    shape, passing = _Shape.of(text, container), use.batch if use.together else 1
    workspace = {
        "activations": shape.activations(passing, prompt, context, itemsize, _writes_scores(text, model)),
        "cache_growth": _cache_growth(caches, passing, prompt, context) * itemsize,
        "logits": _logits(model, shape.vocabulary, replace(use, batch=passing), prompt, itemsize),
        "kernels": _kernels(container, device, itemsize),
    }
    if device.type != "cuda":
        in_use = cache + sum(workspace[name] for name in ("activations", "cache_growth", "logits"))
        workspace["heap"] = int((CPU_HEAP_STEADY if steady else CPU_HEAP) * in_use)
    return Needs(context, use.batch, cache, workspace, _described(caches, context, use.batch, dtype))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The widths of a model, in elements of one token.

    Attributes:
        hidden: of the residual stream. widest: of what the largest linear layer returns or takes.
        queries: of all heads. heads: how many. vocabulary: of the logits.
        experts: how many a token goes through at once.
    """

    hidden: int
    widest: int
    queries: int
    heads: int
    vocabulary: int
    experts: int

    @classmethod
    def of(cls, text: Any, container: Container) -> "_Shape":
        vocabulary = _setting(text, "vocab_size")
        packed = [t for t in container.model_tensors.values() if t.packed]
        hidden = _setting(text, "hidden_size", "d_model") or max([1, *(t.columns for t in packed)])
        inner = [t for t in packed if vocabulary not in (t.rows, t.columns)]
        widest = max([hidden, *(max(_fan_out(t), t.columns) for t in inner)])
        heads = _setting(text, "num_attention_heads", "num_heads", "n_head") or 1
        queries = heads * (_setting(text, "head_dim", "d_kv") or -(-hidden // heads))
        all_of_them = getattr(text, "model_type", None) in EVERY_EXPERT
        experts = _setting(text, "num_local_experts", "num_experts") if all_of_them else 0
        return cls(hidden, widest, queries, heads, vocabulary, experts)

    def activations(self, batch: int, prompt: int, context: int, itemsize: int, scores: bool) -> int:
        """Bytes of the most that one layer holds at once.

        In the feed-forward part: the residual, what is normed (in float32, and its square), and the gate, its
        activation, the other half and their product. In attention: queries, keys and values before and after they
        are rotated with the parts of the rotation, keys and values repeated for all heads, the mask, and the scores
        where an implementation writes them out.
        """
        tokens = batch * prompt
        stream = tokens * self.hidden * (4 * itemsize + 3 * 4)
        # The kernels of the CPU compute in float32, and copy what they take and return where it is not.
        copies = 0 if itemsize == 4 else 4 * tokens * 2 * self.widest
        feed_forward = tokens * 4 * self.widest * itemsize + copies
        feed_forward += tokens * self.experts * (2 * self.hidden + 2 * self.widest) * itemsize
        attention = tokens * 10 * self.queries * itemsize + 2 * batch * context * self.queries * itemsize
        attention += batch * prompt * context * (itemsize + 1)
        if scores:
            attention += batch * self.heads * prompt * context * (3 * itemsize + 4)
        return stream + max(feed_forward, attention)


def _fan_out(tensor: Tensor) -> int:
    """Rows of one matrix: of a stack of experts, those of one of them."""
    return tensor.rows // tensor.shape[0] if len(tensor.shape) == 3 else tensor.rows


def _writes_scores(text: Any, model: Any) -> bool:
    """Whether attention holds a score for each pair of tokens, which fused implementations do not."""
    chosen = getattr(text, "_attn_implementation", None) or getattr(model.config, "_attn_implementation", None)
    return chosen in (None, "eager")


def _cache_growth(caches: list[LayerCache], batch: int, prompt: int, context: int) -> int:
    """Elements of the cache beyond those that it keeps.

    Adding tokens to a layer copies it, so that for a moment one layer is there twice. And a window of tokens is cut
    from the whole prompt, all of which stays in memory until the next token comes.
    """
    twice = max((layer.tokens(context) * layer.token for layer in caches), default=0)
    uncut = sum(max(0, prompt - layer.tokens(context)) * layer.token for layer in caches)
    return batch * (twice + uncut)


def _logits(model: Any, vocabulary: int, use: Use, prompt: int, itemsize: int) -> int:
    """Bytes of logits, in the model's type (twice: some cap them) and in float32 with what sampling makes of them."""
    last = use.logits == "last" and "logits_to_keep" in inspect.signature(type(model).forward).parameters
    rows = use.batch * (1 if last else prompt)
    chosen = min(rows, LOSS_ROWS) if use.logits == "all" else use.batch
    return vocabulary * (rows * 2 * itemsize + chosen * 6 * 4)


def _kernels(container: Container, device: torch.device, itemsize: int) -> int:
    """Bytes that our kernels hold beside what they take and return."""
    if device.type != "cuda":
        return CPU_KERNELS
    packed = [t for t in container.model_tensors.values() if t.packed]
    # A matrix of one chain is rebuilt in pieces, one of several chains whole.
    sizes = [(t.rows * t.columns, t.n_chains > 1) for t in packed]
    most = max((size if whole else min(size, CUDA_ELEMENTS) for size, whole in sizes), default=0)
    return CUDA_LIBRARIES + most * itemsize + CUDA_BLOCK * len(container)


def _described(caches: list[LayerCache], context: int, batch: int, dtype: torch.dtype) -> str:
    if not caches:
        return "no cache"
    kinds = sorted({(layer.window or 0) for layer in caches if layer.token and (layer.window or context) < context})
    windows = f", windows of {', '.join(map(str, kinds))}" if kinds else ""
    name = str(dtype).removeprefix("torch.")
    return f"{context} tokens x {batch}, {len(caches)} layers{windows}, {name}"


def _setting(config: Any, *names: str) -> int:
    values = (getattr(config, name, None) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)
