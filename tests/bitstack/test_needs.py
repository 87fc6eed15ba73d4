"""What a model takes beside its weights: held against the caches and the allocations of real passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import bitstack
from bitstack.kvcache import LayerCache, cache_elements, layer_caches
from bitstack.needs import CONTEXT, CPU_HEAP, CPU_HEAP_STEADY, CPU_KERNELS, Needs, Use, needs_of

CPU = torch.device("cpu")
CAUSAL = ["llama-gqa", "gemma2", "gpt2", "falcon", "mixtral", "gpt-oss", "llama4", "bloom", "phi3"]


def kept(cache: Any) -> int:
    """Elements of the keys and values that a cache holds, without what a window was cut from."""
    both = hasattr(cache, "cross_attention_cache")
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if both else [cache]
    return sum(layer.keys.numel() + layer.values.numel() for part in parts for layer in part.layers)


@pytest.mark.parametrize("kind", [*CAUSAL, "llama-tied", "gemma3", "qwen3", "mistral", "phi", "opt", "gpt-neox", "t5"])
def test_the_cache_is_that_of_a_real_pass(make_model: Callable[..., Any], kind: str) -> None:
    model = make_model(kind)
    ids = torch.arange(40).view(2, 20)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    cache = model(**inputs, use_cache=True).past_key_values
    assert cache_elements(layer_caches(model.config), 20, 2) == kept(cache)


@pytest.mark.parametrize(
    ("kind", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 8}, {8}),
        ("gemma2", {"sliding_window": 8}, {8, None}),
        ("gpt-oss", {"sliding_window": 8}, {8, None}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, {None}),
        ("falcon", {"multi_query": False}, {None}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, {None}),
    ],
)
def test_windows_and_repeated_heads(
    make_model: Callable[..., Any], kind: str, changes: dict[str, Any], windows: set[int | None]
) -> None:
    model = make_model(kind, **changes)
    caches = layer_caches(model.config)
    assert {layer.window for layer in caches} == windows
    cache = model(input_ids=torch.arange(40).view(2, 20), use_cache=True).past_key_values
    # Of a window the layer keeps one token less than it sees.
    short = sum(2 * layer.token for layer in caches if layer.window)
    assert cache_elements(caches, 20, 2) == kept(cache) + short


def test_a_window_bounds_a_layer_and_a_state_has_no_tokens() -> None:
    assert cache_elements([LayerCache(10), LayerCache(10, 8), LayerCache(0, state=7)], 100, 3) == 3 * (1000 + 80 + 7)
    assert cache_elements([LayerCache(10, 8)], 5, 1) == 50


def test_layers_that_keep_nothing_little_or_others_caches() -> None:
    from transformers import AutoConfig

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    hybrid = AutoConfig.for_model(
        "qwen3_next",
        **sizes,
        num_hidden_layers=4,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    *states, full = layer_caches(hybrid)
    assert full == LayerCache(64)
    assert [layer.token for layer in states] == [0, 0, 0]
    assert states[0].state >= 4 * 8 * 8
    latent = AutoConfig.for_model(
        "deepseek_v3",
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
    )
    assert layer_caches(latent) == [LayerCache(4 * (24 + 12))] * 2


def in_use(needs: Needs) -> int:
    """What torch's allocator is counted on to give out: without kernels, and what the heap keeps."""
    return needs.cache_bytes + needs.workspace_bytes - needs.workspace["kernels"] - needs.workspace["heap"]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator of the CPU gave out at once for some work."""
    with torch.inference_mode():
        work()  # what a first call keeps for later ones is not counted
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            work()
    results: Any = recorded.profiler
    events = [(e.start_ns(), e.nbytes()) for e in results.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, size in sorted(events):
        held += size
        most = max(most, held)
    assert most > 0
    return most


@pytest.mark.parametrize("kind", [*CAUSAL, "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_generating_stays_within_what_was_counted(packed: Callable[[str], Any], kind: str, dtype: torch.dtype) -> None:
    model = bitstack.load(packed(kind).path, "100%", "cpu", dtype, use=Use(context=60, batch=16, prompt=56))
    ids = torch.randint(2, 250, (16, 56))
    sampling = {"do_sample": True, "top_k": 20, "top_p": 0.9, "pad_token_id": 0, "min_new_tokens": 4}
    counted = in_use(model.bitstack.needs)
    most = peak_bytes(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, **sampling))
    assert most <= counted + (1 << 20)
    assert counted < 6 * most


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "t5", "bert"])
def test_measuring_stays_within_what_was_counted(packed: Callable[[str], Any], kind: str) -> None:
    use = Use(context=64, batch=12, logits="all")
    model = bitstack.load(packed(kind).path, "100%", "cpu", use=use)
    ids = torch.randint(2, 250, (12, 64))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "t5" else {})

    def measure() -> None:
        logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits[0].float(), ids[0])

    needs = model.bitstack.needs
    assert peak_bytes(measure) <= in_use(needs) + (1 << 20)
    assert (needs.cache_bytes == 0) == (kind == "bert")


def test_a_use_that_says_nothing_is_of_a_usual_context(packed: Callable[[str], Any]) -> None:
    elastic = bitstack.load(packed("llama-gqa").path, "100%", "cpu").bitstack
    assert elastic.needs.context == 64  # no more than the model can read
    assert elastic.needs.to_json()["workspace_bytes"] == sum(elastic.needs.to_json()["workspace"].values())
    elastic.use = Use(context=1000, batch=3)
    needs = elastic.needs
    assert (needs.context, needs.batch, needs.cache_bytes) == (1000, 3, 1000 * 3 * 2 * 2 * 2 * 16 * 4)
    assert needs.cache_shape == "1000 tokens x 3, 2 layers, float32"
    assert needs.workspace["kernels"] == CPU_KERNELS
    assert needs.workspace["heap"] in (int(share * in_use(needs)) for share in (CPU_HEAP, CPU_HEAP_STEADY))
    assert CONTEXT == 4096


def test_sequences_in_passes_of_their_own_share_a_workspace(packed: Callable[[str], Any]) -> None:
    elastic = bitstack.load(packed("llama-gqa").path, "100%", "cpu").bitstack
    elastic.use = Use(context=60, batch=5, prompt=20, together=False)
    apart = elastic.needs
    elastic.use = Use(context=60, prompt=20)
    one = elastic.needs
    assert apart.cache_bytes == 5 * one.cache_bytes
    parts = ("activations", "cache_growth", "logits", "kernels")
    assert [apart.workspace[name] for name in parts] == [one.workspace[name] for name in parts]


@pytest.mark.parametrize("wrong", [{"context": 0}, {"batch": 0}, {"prompt": -1}])
def test_a_use_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Use(**wrong)  # type: ignore[arg-type]


def test_on_a_gpu_the_kernels_and_libraries_take_more(
    packed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    elastic = bitstack.load(packed("llama-gqa").path, "100%", "cpu").bitstack
    shell = elastic._shell
    needs = needs_of(shell.model, elastic.container, torch.device("cuda"), torch.bfloat16, Use(64))
    largest = max(t.rows * t.columns for t in elastic.container.model_tensors.values() if t.packed)
    assert needs.workspace["kernels"] == (160 << 20) + largest * 2 + 72 * len(elastic.container)
    monkeypatch.setattr("bitstack.needs.CUDA_ELEMENTS", largest // 2)
    fewer = needs_of(shell.model, elastic.container, torch.device("cuda"), torch.bfloat16, Use(64))
    assert needs.workspace["kernels"] - fewer.workspace["kernels"] == largest // 2 * 2
    assert needs.cache_bytes == elastic.needs.cache_bytes // 2
    assert "heap" not in needs.workspace
