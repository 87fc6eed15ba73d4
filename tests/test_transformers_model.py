"""A real model through the public doors of transformers and peft."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
from bitstack.repository import write_repository

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")]
pytest_plugins = ["tests.realmodel"]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = "The old lighthouse keeper counted seventeen green bottles, and wrote the number down in a book of blue paper."


@pytest.fixture(scope="module")
def repository(smollm2_bstk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories") / "smollm2"
    write_repository(smollm2_bstk, folder)
    return folder


def load(path: Path, budget: str, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = bitstack.BitStackConfig(budget=budget)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=torch.float32, **options)


def test_loaded_asked_compiled_saved_and_loaded_again(repository: Path, smollm2_bstk: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CompileConfig, pipeline

    model, tokenizer = load(repository, "100MiB"), AutoTokenizer.from_pretrained(repository)
    direct = bitstack.load(smollm2_bstk, "100MiB", "cpu", torch.float32)
    assert model.bitstack.plan == direct.bitstack.plan
    assert model.bitstack.resident_bytes <= 100 << 20
    # What is there as dense parameters are the norms.
    assert sum(p.numel() for p in model.parameters()) < 100_000
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, direct(ids).logits)

    talk = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = talk(QUESTION, do_sample=False, max_new_tokens=8)
    assert "Paris" in answer["generated_text"][-1]["content"]

    compiling = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    short = {"do_sample": False, "max_new_tokens": 8}
    plain = model.generate(ids, **short)
    torch._dynamo.reset()
    static = model.generate(ids, **short, cache_implementation="static", compile_config=compiling)
    torch._dynamo.reset()
    assert torch.equal(plain, static)

    model.bitstack.resize("70MiB")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.bstk").stat().st_size < 71 << 20
    again = load(tmp_path, "100%")
    assert again.bitstack.plan.n_blocks == model.bitstack.plan.n_blocks
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_lora_learns_a_sentence(repository: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    model, tokenizer = load(repository, "70MiB"), AutoTokenizer.from_pretrained(repository)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    optimiser = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=5e-3)
    losses = []
    for _ in range(6):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1, losses
    with adapted.disable_adapter(), torch.no_grad():
        assert float(adapted(input_ids=ids, labels=ids).loss) == pytest.approx(losses[0], abs=1e-4)
