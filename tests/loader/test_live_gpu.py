"""Resizing under generation on a GPU: streams, captured graphs, and what the allocator says."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from tests.loader.tiny import WatchedSource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
COUNTS = (45, 60, 75, 90, 104)


@pytest.fixture
def at(container: bsformat.Container) -> Callable[[int], Any]:
    """A model with so many blocks, in float32."""

    def load(count: int) -> Any:
        model = bitstack.load(container, "100%", "cuda", torch.float32)
        model.bitstack.resize(container.planner.resident_bytes(count) + model.bitstack.widening)
        return model

    return load


def resize(model: Any, count: int) -> None:
    planner = model.bitstack.container.planner
    assert model.bitstack.resize(planner.resident_bytes(count) + model.bitstack.widening).n_blocks == count


def logits(model: Any, tokens: int = 3) -> torch.Tensor:
    ids = torch.arange(1, 1 + tokens, device="cuda")[None]
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=False).logits
    torch.cuda.current_stream().synchronize()
    return out


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def allocated() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_allocated_bytes_fall_and_come_back(at: Callable[[int], Any], container: bsformat.Container) -> None:
    model = at(104)
    logits(model)
    high = allocated()
    for count in (45, 90, 60):
        resize(model, count)
        lengths = [container.block(number).length for number in range(count, 104)]
        # The allocator rounds every tensor up to 512 bytes; a payload is one tensor, but for parts of odd addresses.
        freed = high - allocated()
        assert sum(lengths) <= freed <= sum(length + 4 * 512 for length in lengths)
        resize(model, 104)
        assert allocated() == high
    fresh = at(45)
    resize(model, 45)
    assert near(logits(model), logits(fresh))


def test_freed_memory_goes_back_to_the_driver(at: Callable[[int], Any]) -> None:
    model = at(104)
    logits(model)
    resize(model, 45)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == before, "nothing was left to give back"


def test_nothing_that_was_read_stays_in_host_memory(
    at: Callable[[int], Any], container: bsformat.Container, source: WatchedSource
) -> None:
    model = at(60)
    model.bitstack.grow("100%").wait(60)
    assert source.held == 0
    assert all(p.device.type == "cuda" for p in model.parameters())
    packed = {id(m.packed): m.packed for m in model.modules() if hasattr(m, "packed")}.values()
    assert all(t.device.type == "cuda" for p in packed for chain in p.chains for b in chain.blocks for t in b.tensors)
    assert all(data.device.type == "cuda" for p in packed for group in p.groups for _, data in group.payloads)


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_passes_on_other_streams_see_one_plan(at: Callable[[int], Any], tokens: int) -> None:
    fresh = {count: logits(at(count), tokens) for count in COUNTS}
    model = at(COUNTS[0])
    stop, seen = threading.Event(), list[torch.Tensor]()

    def use() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():
                seen.append(logits(model, tokens))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(60):
            count = COUNTS[turn * 2 % len(COUNTS)]
            resize(model, count)
            assert near(logits(model, tokens), fresh[count])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen
    assert all(any(near(out, other) for other in fresh.values()) for out in seen)


def test_work_that_is_enqueued_reads_the_blocks_of_before(at: Callable[[int], Any]) -> None:
    """Passes behind a long queue on a stream of their own, and a resize that frees what they will read."""
    fresh = {count: logits(at(count)) for count in (45, 104)}
    model = at(104)
    logits(model)
    ids, stream = torch.arange(1, 4, device="cuda")[None], torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.inference_mode():
        torch.cuda._sleep(200_000_000)
        outs = [model(input_ids=ids, use_cache=False).logits for _ in range(5)]
    resize(model, 45)
    noise = [torch.full((1 << 16,), 255, dtype=torch.uint8, device="cuda") for _ in range(64)]
    torch.cuda.synchronize()
    assert len(noise) == 64
    assert all(near(out, fresh[104]) for out in outs)
    assert near(logits(model), fresh[45])


def test_a_captured_graph_survives(at: Callable[[int], Any]) -> None:
    """Of one layer: a whole model of transformers may ask the device in between, which no capture allows."""
    x = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)).cuda()
    layer = "model.layers.1.mlp"
    with torch.inference_mode():
        fresh = {count: at(count).get_submodule(layer)(x) for count in COUNTS}
        model = at(60)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model.get_submodule(layer)(x)
        torch.cuda.current_stream().wait_stream(stream)
        with model.bitstack.frozen(), torch.cuda.graph(graph):
            out = model.get_submodule(layer)(x)
        for count in (104, 45, 90, 60):
            resize(model, count)
            with model.bitstack.frozen():
                graph.replay()
                torch.cuda.synchronize()
            assert near(out, fresh[count])


def test_generating_while_it_grows(container: bsformat.Container, at: Callable[[int], Any]) -> None:
    model = bitstack.load(container, "100%", "cuda", torch.float32, progressive=True)
    ids = torch.arange(1, 4, device="cuda")[None]
    while not model.bitstack.growth.done:
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    model.bitstack.growth.wait()
    assert near(logits(model), logits(at(104)))
