"""`from_pretrained` on a directory with a .bstk: how much is loaded, what is never made, saving, what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, CompileConfig, pipeline

import bitstack
import bitstack.transformers as ours
import bsformat
from bitstack import BitStackConfig
from bitstack.repository import FILE, PLACEHOLDER, hub_uri, write_repository
from bsformat.errors import BstkError, ModelError, WriteError

#: transformers says that what config.json holds gives way to what is asked for: so it does.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
IDS = torch.tensor([[5, 9, 200, 31, 7, 4]])


@pytest.fixture(scope="module")
def repository(tiny_bstk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repositories") / "tiny"
    write_repository(tiny_bstk, folder)
    return folder


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """One to write to."""
    return Path(shutil.copytree(repository, tmp_path / "copy"))


def load(path: Path | str, config: BitStackConfig | None = None, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        path, **({} if config is None else {"quantization_config": config}), **options
    )


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def middle(path: Path) -> int:
    with bsformat.open(path) as container:
        return (container.minimum_bytes + container.total_bytes) // 2


# --- how much --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_is_kept_and_the_model_is_the_one_of_load(
    repository: Path, tiny_bstk: Path, dtype: torch.dtype
) -> None:
    budget = middle(tiny_bstk)
    model = load(repository, BitStackConfig(budget=budget), dtype=dtype)
    other = bitstack.load(tiny_bstk, budget, "cpu", dtype)
    assert model.bitstack.plan == other.bitstack.plan
    assert model.bitstack.resident_bytes == other.bitstack.resident_bytes <= budget
    assert model.bitstack.plan.next_bytes is not None
    assert torch.equal(logits(model), logits(other))
    assert (model.dtype, model.is_quantized, model.quantization_method) == (dtype, True, "bitstack")
    assert not model.training
    model.bitstack.resize("100%")
    other.bitstack.resize("100%")
    assert torch.equal(logits(model), logits(other))


def test_without_a_config_it_is_all_that_fits(repository: Path, tiny_bstk: Path) -> None:
    model = load(repository)
    assert model.bitstack.auto is not None
    assert model.bitstack.plan.next_bytes is None
    assert model.dtype == torch.float32, "what config.json says that it was stored in"
    with bsformat.open(tiny_bstk) as container:
        assert model.config.quantization_config.root == container.root


def test_progressive(repository: Path) -> None:
    model = load(repository, BitStackConfig("100%", progressive=True))
    model.bitstack.growth.wait()
    assert model.bitstack.plan.next_bytes is None


def test_a_config_is_enough_where_config_json_says_nothing(copy: Path, tiny_bstk: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["quantization_config"]
    (copy / "config.json").write_text(json.dumps(config))
    model = load(copy, BitStackConfig(budget=middle(tiny_bstk)))
    assert model.bitstack.plan.next_bytes is not None
    (copy / FILE).unlink()
    elsewhere = load(copy, BitStackConfig("100%", uri=tiny_bstk))
    assert torch.equal(logits(elsewhere), logits(bitstack.load(tiny_bstk, "100%", "cpu")))


class Written(TorchDispatchMode):
    """Notes the most elements of a floating tensor that anything was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = func.name().startswith("aten::empty") or func.is_view  # memory that nobody touches
        if not made and isinstance(result, torch.Tensor):
            real = result.is_floating_point() and not result.is_meta
            self.elements = max(self.elements, result.numel() if real else 0)
        return result


def test_dense_weights_never_exist(repository: Path, tiny_bstk: Path) -> None:
    with bsformat.open(tiny_bstk) as container:
        smallest = min(t.rows * t.columns for t in container.model_tensors.values() if t.packed)
        raw = sum(t.rows * t.columns for t in container.model_tensors.values() if not t.packed)
    with Written() as written:
        model = load(repository, BitStackConfig("100%"))
    assert 0 < written.elements < smallest
    assert sum(p.numel() for p in model.parameters()) == raw
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    assert not any(p.requires_grad for p in model.parameters())


# --- where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_device_maps_of_one_device(repository: Path, device_map: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers wants accelerate for a device map")
    model = load(repository, device_map=device_map)
    if device_map != "auto":
        assert model.device.type == model.bitstack.device.type == "cpu"
    assert torch.isfinite(logits(model.cpu())).all()


@pytest.mark.parametrize("device_map", [{"model": "cpu", "lm_head": "cuda:0"}, {"": "disk"}])
def test_other_device_maps_are_refused(repository: Path, device_map: Any) -> None:
    pytest.importorskip("accelerate", reason="transformers wants accelerate for a device map")
    with pytest.raises(ModelError, match="one device") as caught:
        load(repository, device_map=device_map)
    assert caught.value.reason == "device-map"


# --- generating ------------------------------------------------------------------------------------------------------


def test_pipelines_and_chat_templates(repository: Path) -> None:
    model, tokenizer = load(repository), AutoTokenizer.from_pretrained(repository)
    talk = pipeline("text-generation", model=model, tokenizer=tokenizer)
    chat = [{"role": "user", "content": "the sea is wide"}]
    (answer,) = talk(chat, do_sample=False, max_new_tokens=4)
    assert answer["generated_text"][-1]["role"] == "assistant"
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=4)
    text = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer["generated_text"][-1]["content"] == text


def test_a_compiled_graph_is_whole_and_survives_a_resize(repository: Path, tiny_bstk: Path) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    config._compile_all_devices = True  # transformers would leave a CPU alone
    model = load(repository, BitStackConfig(middle(tiny_bstk)))
    same = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    for budget in (None, "100%", middle(tiny_bstk)):
        if budget is not None:
            model.bitstack.resize(budget)
        plain = model.generate(IDS, **same)
        compiled = model.generate(IDS, **same, cache_implementation="static", compile_config=config)
        assert torch.equal(plain, compiled)
        assert counters["stats"]["unique_graphs"] == 1, "blocks are data: no resize compiles again"
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of float32, and of its own graphs
def test_on_a_gpu_and_moved_to_one(repository: Path, tiny_bstk: Path) -> None:
    part = middle(tiny_bstk)
    moved = load(repository, BitStackConfig(part)).to("cuda")
    assert moved.bitstack.device.type == "cuda"
    there = load(repository, BitStackConfig(part), device_map="cuda")
    same = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    for budget in (part, "100%", part):
        for model in (moved, there):
            model.bitstack.resize(budget)
        wanted = bitstack.load(tiny_bstk, budget, "cuda", torch.float32)
        for model in (moved, there):
            with torch.inference_mode():
                found = [m(input_ids=IDS.cuda(), use_cache=False).logits for m in (model, wanted)]
            assert torch.allclose(*found, atol=1e-3, rtol=1e-3)
    plain = there.generate(IDS.cuda(), **same)
    assert torch.equal(plain, there.generate(IDS.cuda(), **same, cache_implementation="static"))  # compiled, captured


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["part", "100%"])
def test_saved_and_loaded_again_it_is_the_same(repository: Path, tiny_bstk: Path, tmp_path: Path, budget: str) -> None:
    model = load(repository, BitStackConfig(middle(tiny_bstk) if budget == "part" else budget))
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / FILE).write_bytes((tmp_path / "saved" / FILE).read_bytes())  # no link to what it came from
    again = load(tmp_path / "saved")
    assert again.bitstack.plan.n_blocks == model.bitstack.plan.n_blocks
    assert again.bitstack.container.root == model.bitstack.container.root
    assert torch.equal(logits(again), logits(model))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert saved == {"quant_method": "bitstack", "file": FILE, "root": model.bitstack.container.root}
    again.save_pretrained(tmp_path / "saved")  # over what it runs from
    assert torch.equal(logits(load(tmp_path / "saved")), logits(model))
    load(repository, BitStackConfig("100%")).save_pretrained(tmp_path / "saved")  # over another one
    assert (tmp_path / "saved" / FILE).read_bytes() == tiny_bstk.read_bytes()


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_repository_of_the_hub_is_read_where_it_is(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has downloaded all but the .bstk, of which only the prefix is to be read."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    snapshot = cache / "models--someone--tiny" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(repository, snapshot, ignore=shutil.ignore_patterns(FILE))
    refs = cache / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    opened: list[str] = []
    real: Callable[..., bsformat.Container] = bsformat.open

    def fake(uri: Any, **options: Any) -> bsformat.Container:
        opened.append(str(uri))
        return real(repository / FILE, **options)

    monkeypatch.setattr(ours.bsformat, "open", fake)
    model = load("someone/tiny", cache_dir=cache)
    assert opened == [f"hf://someone/tiny@{commit}/{FILE}"]
    assert torch.isfinite(logits(model)).all()


def test_folders_within_a_repository() -> None:
    beside = f"/cache/models--a--b/snapshots/{'0' * 40}/small/model.safetensors"
    assert hub_uri("a/b", beside, FILE) == f"hf://a/b@{'0' * 40}/small/{FILE}"


# --- what is refused -------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[BstkError], reason: str) -> None:
    assert error.value.reason == reason
    assert "\n" not in str(error.value)


def test_a_directory_without_its_file(copy: Path) -> None:
    (copy / FILE).unlink()
    with pytest.raises(ModelError, match=r"lacks model\.bstk.*init-repo") as caught:
        load(copy)
    one_line(caught, "repository-file")


def test_another_file_than_the_one_that_config_json_means(copy: Path) -> None:
    change_config(copy, root="00" * 32)
    with pytest.raises(BstkError) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../model.bstk", "/etc/passwd", "http://somewhere/model.bstk", "a\\b", "."])
def test_config_json_leads_nowhere_else(copy: Path, name: str) -> None:
    change_config(copy, file=name)
    with pytest.raises(ModelError) as caught:
        load(copy)
    one_line(caught, "repository-file")


def test_config_json_says_nonsense(copy: Path) -> None:
    change_config(copy, root=["x"])
    with pytest.raises(ModelError, match="must be text") as caught:
        load(copy)
    one_line(caught, "repository-file")


def test_config_json_does_not_decide_for_its_reader(copy: Path) -> None:
    change_config(copy, uri="http://somewhere", storage_options={"key": "value"}, budget=1, cache=False, more="x")
    model = load(copy)
    config = model.config.quantization_config
    assert (config.uri, config.storage_options, config.budget, config.cache) == (None, {}, None, True)
    assert model.bitstack.plan.next_bytes is None


def test_another_class_than_that_of_the_file(repository: Path) -> None:
    with pytest.raises(ModelError, match="load it with AutoModelForCausalLM") as caught:
        AutoModel.from_pretrained(repository)
    one_line(caught, "model-class")


def test_a_budget_below_the_minimum_and_a_type_that_nothing_computes_in(repository: Path) -> None:
    with pytest.raises(BstkError) as caught:
        load(repository, BitStackConfig(budget=1))
    one_line(caught, "budget-too-small")
    with pytest.raises(ModelError, match="float64") as caught:
        load(repository, dtype=torch.float64)
    one_line(caught, "model-dtype")


def test_a_folder_with_other_things(tiny_bstk: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("")
    with pytest.raises(WriteError, match=r"thesis\.doc") as caught:
        write_repository(tiny_bstk, tmp_path)
    one_line(caught, "repository-folder")
    with pytest.raises(WriteError, match="no folder"):
        write_repository(tiny_bstk, tmp_path / "thesis.doc")


# --- registration ----------------------------------------------------------------------------------------------------


def test_without_bitstack_transformers_fails_rather_than_invent_weights(repository: Path, tmp_path: Path) -> None:
    program = f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(repository)!r})
except RuntimeError as error:
    print(error)
import bitstack.transformers
print(AutoModelForCausalLM.from_pretrained({str(repository)!r}).bitstack.plan.n_blocks > 0)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, loaded = done.stdout.splitlines()
    assert "mismatched" in refused
    assert loaded == "True"
    assert (repository / PLACEHOLDER).stat().st_size < 400


def test_registering_again_does_nothing() -> None:
    ours._register()
    assert ours.auto.LOADING_ATTRIBUTES_CONFIG_TYPES.count(BitStackConfig) == 1
