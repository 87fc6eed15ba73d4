"""Forward passes and changes never at once, and neither waits for the other for ever."""

import copy
import inspect
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config, T5ForConditionalGeneration

from bitstack import gate as gates
from bitstack.gate import Gate, gate_passes
from bsformat.errors import ResizeError

SOON = 30.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@contextmanager
def running(*targets: Callable[[], object]) -> Iterator[None]:
    """Threads, which must have ended when this does."""
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


def test_passes_run_side_by_side() -> None:
    gate, both = Gate(), threading.Barrier(2, timeout=SOON)

    def forward() -> None:
        with gate.passing():
            both.wait()

    with running(forward, forward):
        pass


def test_a_change_waits_for_passes_and_holds_new_ones_back() -> None:
    gate, seen = Gate(), list[str]()
    finish = threading.Event()

    def first() -> None:
        with gate.passing():
            seen.append("first")
            assert finish.wait(SOON)
            seen.append("first is over")

    def change() -> None:
        with gate.changing() as granted:
            assert granted
            seen.append("change")

    def second() -> None:
        with gate.passing():
            seen.append("second")

    with running(first):
        until(lambda: "first" in seen)
        with running(change):
            until(lambda: gate._waiting == 1)
            with running(second):
                until(lambda: len(gate._held_back) == 1)
                finish.set()
    assert seen == ["first", "first is over", "change", "second"]


def test_passes_that_were_held_back_go_before_the_next_change() -> None:
    gate, seen, entered = Gate(), list[str](), threading.Event()
    both = threading.Barrier(3, timeout=SOON)

    def forward() -> None:
        with gate.passing():
            both.wait()
            seen.append("pass")
            both.wait()

    def later() -> None:
        with gate.changing():
            seen.append("later change")

    def change() -> None:
        with gate.changing():
            entered.set()
            until(lambda: len(gate._held_back) == 2 and gate._waiting == 1)
            seen.append("change")

    with running(change):
        assert entered.wait(SOON)
        with running(forward, forward, later):
            both.wait()
            both.wait()
    assert seen == ["change", "pass", "pass", "later change"]


def test_a_pass_within_a_pass_does_not_wait() -> None:
    gate, seen = Gate(), list[bool]()

    def change() -> None:
        with gate.changing() as granted:
            seen.append(granted)

    with gate.passing():
        thread = threading.Thread(target=change)
        thread.start()
        until(lambda: gate._waiting == 1)
        with gate.passing(), gate.passing():
            assert gate.within
        assert gate.within
        assert seen == []
    thread.join(SOON)
    assert seen == [True]
    assert not gate.within


def test_a_change_within_a_pass_is_refused() -> None:
    gate = Gate()
    with gate.passing():
        with pytest.raises(ResizeError, match="within a forward pass of a model") as caught, gate.changing():
            pass
        assert caught.value.reason == "resize-within-pass"
        assert "\n" not in str(caught.value)
    with gate.changing() as granted:
        assert granted


def test_a_change_that_nobody_wants_any_more_gives_up() -> None:
    gate, wanted, seen = Gate(), threading.Event(), list[bool]()

    def change() -> None:
        with gate.changing(lambda: not wanted.is_set()) as granted:
            seen.append(granted)

    with gate.passing():
        with running(change):
            until(lambda: gate._waiting == 1)
            wanted.set()
        assert seen == [False]

        def forward() -> None:
            with gate.passing():
                seen.append(True)

        with running(forward):  # nobody is held back by it
            pass
    assert seen == [False, True]


def test_a_pass_that_waits_for_one_that_is_held_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of one pass, of which only the first came in before the change."""
    monkeypatch.setattr(gates, "MAKE_WAY", 0.05)
    monkeypatch.setattr(gates, "CYCLE", SOON)
    gate, seen = Gate(), list[str]()

    def inner() -> None:
        with gate.passing():
            seen.append("inner")

    def change() -> None:
        with gate.changing():
            seen.append("change")

    with gate.passing():
        thread = threading.Thread(target=change)
        thread.start()
        until(lambda: gate._waiting == 1)
        with running(inner):
            pass
    thread.join(SOON)
    assert seen == ["inner", "change"]


def test_a_pass_that_failed_is_over() -> None:
    gate = Gate()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), gate.passing():
            raise error
    with gate.changing() as granted:
        assert granted
    with pytest.raises(ValueError, match="x"), gate.changing():
        raise ValueError("x")
    with gate.passing():
        pass


def test_a_pass_that_an_interrupt_lost_ends_with_the_next_one_of_its_thread() -> None:
    gate = Gate()
    gate._inside.add(threading.get_ident())  # the interrupt came where nothing could catch it
    with gate.passing():
        pass
    with gate.changing() as granted:
        assert granted


def test_many_at_random() -> None:
    gate, lock = Gate(), threading.Lock()
    passes = changes = most = 0
    done = {"pass": 0, "change": 0}

    def forward(seed: int) -> None:
        nonlocal passes, most
        draw = random.Random(seed)
        for _ in range(150):
            with gate.passing(), gate.passing():
                with lock:
                    passes += 1
                    most = max(most, passes)
                    assert changes == 0
                time.sleep(draw.choice([0, 0, 0.0005]))
                with lock:
                    passes -= 1
                    done["pass"] += 1

    def change(seed: int) -> None:
        nonlocal changes
        draw = random.Random(seed)
        for _ in range(60):
            with gate.changing() as granted:
                assert granted
                with lock:
                    changes += 1
                    assert (passes, changes) == (0, 1)
                time.sleep(draw.choice([0, 0.0002]))
                with lock:
                    changes -= 1
                    done["change"] += 1

    with running(*[lambda s=s: forward(s) for s in range(4)], *[lambda s=s: change(s) for s in range(2)]):  # type: ignore[misc]
        pass
    assert done == {"pass": 600, "change": 120}
    assert most > 1
    assert not gate._inside
    assert not gate._held_back


# The passes of a model


def llama() -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model.eval()


def test_every_call_of_a_model_is_a_pass() -> None:
    model, gate = llama(), Gate()
    names = list(inspect.signature(model.forward).parameters)
    gate_passes(model, gate)
    within: list[bool] = []
    layer = model.get_submodule("model.layers.0.mlp")
    layer.register_forward_hook(lambda *_: within.append(gate.within))
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        model(ids)
        model.get_submodule("model")(ids)
        model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    assert within == [True] * 4
    assert not gate.within
    assert list(inspect.signature(model.forward).parameters) == names, "generation reads them"


def test_an_encoder_alone_is_a_pass() -> None:
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model, gate = T5ForConditionalGeneration(config).eval(), Gate()
    gate_passes(model, gate)
    within: list[bool] = []
    model.encoder.block[0].register_forward_hook(lambda *_: within.append(gate.within))
    model.decoder.block[0].register_forward_hook(lambda *_: within.append(gate.within))
    with torch.inference_mode():
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1, do_sample=False)
    assert within == [True, True]


def test_a_copy_computes_with_its_own_weights() -> None:
    model = llama()
    gate_passes(model, Gate())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(torch.tensor([[1]])).logits.any()
        assert model(torch.tensor([[1]])).logits.any()
