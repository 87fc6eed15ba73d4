"""Building a model from a file that nobody vouches for: every misfit is one line."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitstack
import bsformat
from bitstack.shell import Shell, meta_parameters
from bsformat import Form, Tensor, Writer
from bsformat.errors import BstkError, ModelError

NORM = Tensor("model.norm.weight", (64,), "F32")


@pytest.fixture
def config(packed: Callable[[str], Any]) -> dict[str, Any]:
    """The configuration of a Llama without biases."""
    with bsformat.open(packed("llama-untied").path) as container:
        return json.loads(container.attachment("config.json"))  # type: ignore[no-any-return]


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of such tensors, all zero and without any residual block, and such attachments."""

    def write(files: dict[str, Any], tensors: Sequence[Tensor] = (NORM,), **options: Any) -> str:
        path = str(tmp_path / "made.bstk")
        with Writer(path, tensors) as writer:
            for tensor in writer.tensors:
                if not tensor.packed:
                    writer.put(tensor.first_chain, Form("raw"), bytes(tensor.dense_bytes))
            for name, value in files.items():
                writer.attach(name, value if isinstance(value, bytes) else json.dumps(value).encode())
            writer.finish([], **options)
        return path

    return write


def _refused(path: str, reason: str) -> BstkError:
    with pytest.raises(BstkError) as caught:
        bitstack.load(path, "100%", "cpu")
    assert caught.value.reason == reason, caught.value
    assert caught.value.where == path
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    return caught.value


# Tensors that do not fit


@pytest.mark.parametrize("missing", ["model.layers.1.input_layernorm.weight", "lm_head.weight"])
def test_a_tensor_that_is_missing(
    file: Callable[..., str], packed: Callable[[str], Any], config: dict[str, Any], missing: str
) -> None:
    with bsformat.open(packed("llama-untied").path) as container:
        shapes = {name: t.shape for name, t in container.model_tensors.items()}
    complete = [Tensor(name, shape, "BF16") for name, shape in shapes.items()]
    bitstack.load(file({"config.json": config}, complete), "100%", "cpu").bitstack.close()
    path = file({"config.json": config}, [t for t in complete if t.name != missing])
    error = _refused(path, "model-incomplete")
    assert isinstance(error, ModelError)
    assert f"no tensor {missing!r}" in error.message


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor("model.norm.weight", (65,), "F32"), r"has shape \[65\], the architecture expects \[64\]"),
        (Tensor("model.norm.weight", (1, 64), "F32"), r"has shape \[1, 64\]"),
        (Tensor("model.nothing.weight", (64,), "F32"), "has no place in this architecture"),
        (Tensor("model.norm.scale", (64,), "F32"), "has no place"),
        (Tensor("model.norm", (64,), "F32"), "has no place"),
        (Tensor("model.norm.weight.data", (64,), "F32"), "has no place"),
        (Tensor("weight", (64,), "F32"), "has no place"),
        (Tensor(".", (64,), "F32"), "has no place"),
        (Tensor("model.norm.forward", (64,), "F32"), "has no place"),
        # A layer without bias has the name, but nothing under it.
        (Tensor("model.layers.0.self_attn.q_proj.bias", (64,), "F32"), "has no place"),
    ],
)
def test_raw_tensors_that_do_not_fit(
    file: Callable[..., str], config: dict[str, Any], tensor: Tensor, message: str
) -> None:
    error = _refused(file({"config.json": config}, [tensor]), "model-mismatch")
    assert error.message.startswith(f"tensor {tensor.name!r} ")
    with pytest.raises(ModelError, match=message):
        raise error


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor("lm_head.weight", (64, 258), "F32", 64, 0, 1), r"has shape \[64, 258\]"),
        (Tensor("lm_head.weight", (258, 64), "F32", 258, 0, 1, True), r"has shape \[64, 258\]"),
        (Tensor("lm_head.weight", (2, 129, 64), "F32", 258, 0, 1), r"has shape \[2, 129, 64\]"),
        (Tensor("model.norm.weight", (64, 1), "F32", 64, 0, 1), r"has shape \[64, 1\]"),
        (Tensor("model.layers.0.self_attn.q_proj.bias", (64, 64), "F32", 64, 0, 1), "has no place"),
        (Tensor("lm_head.nothing", (258, 64), "F32", 258, 0, 1), "has no place"),
    ],
)
def test_packed_tensors_that_do_not_fit(
    file: Callable[..., str], config: dict[str, Any], tensor: Tensor, message: str
) -> None:
    scales = [Tensor("r", (tensor.rows,), "F16"), Tensor("c", (tensor.columns,), "F16")]
    with pytest.raises(ModelError, match=message):
        raise _refused(file({"config.json": config}, [*scales, tensor]), "model-mismatch")


def test_a_buffer_cannot_be_packed(file: Callable[..., str], config: dict[str, Any]) -> None:
    scales = [Tensor("r", (1,), "F16"), Tensor("c", (1,), "F16")]
    tensor = Tensor("model.embed_tokens.embed_scale", (1, 1), "F32", 1, 0, 1)
    with_gemma = config | {"model_type": "gemma", "head_dim": 16}
    assert "embed_scale' " in _refused(file({"config.json": with_gemma}, [*scales, tensor]), "model-mismatch").message


def test_an_alias_without_a_place(file: Callable[..., str], config: dict[str, Any]) -> None:
    path = file({"config.json": config}, aliases={"model.elsewhere.weight": "model.norm.weight"})
    assert "'model.elsewhere.weight' has no place" in _refused(path, "model-mismatch").message


def test_a_budget_of_no_blocks(file: Callable[..., str], config: dict[str, Any]) -> None:
    """A chain without blocks is a matrix of zeros: the smallest model there is."""
    config = config | {"num_hidden_layers": 0}
    tensors = [
        *(Tensor(f"s{i}", (n,), "F16") for i, n in enumerate((258, 64))),
        Tensor("model.embed_tokens.weight", (258, 64), "F32", 258, 0, 1),
        Tensor("lm_head.weight", (258, 64), "F32", 258, 0, 1),
        NORM,
    ]
    model = bitstack.load(file({"config.json": config}, tensors), "100%", "cpu")
    assert not model(torch.tensor([[1, 2]])).logits.any()
    model.bitstack.close()


def test_float8_tensors_are_raw_tensors_too(file: Callable[..., str], config: dict[str, Any]) -> None:
    tensor = Tensor("model.norm.weight", (64,), "F8_E4M3")
    assert (
        "'model.embed_tokens.weight'" in _refused(file({"config.json": config}, [tensor]), "model-incomplete").message
    )


# Configurations that make no model


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "no-such-architecture"},
        {"model_type": None},
        {"model_type": ["llama"]},
        {"hidden_size": "wide"},
        {"hidden_size": -1},
        {"hidden_act": "no-such-function"},
        {"num_attention_heads": 0},
        {"vocab_size": 1 << 45},
        {"vocab_size": -3},
        {"pad_token_id": 10**6},
        {"rope_parameters": 3},
        {"dtype": "float99"},
    ],
    ids=str,
)
def test_configurations_that_make_no_model(
    file: Callable[..., str], config: dict[str, Any], change: dict[str, Any]
) -> None:
    error = _refused(file({"config.json": config | change}), "model-config")
    assert error.message.startswith("this version of transformers cannot build a ")


@pytest.mark.parametrize("data", [b"{", b"[]", b"3", b"", b"\xff\xfe\x00", b"[" * 100_000], ids=repr)
def test_a_configuration_that_is_no_json_object(file: Callable[..., str], data: bytes) -> None:
    assert _refused(file({"config.json": data}), "model-config").message == "its config.json is no JSON object"


def test_no_configuration(file: Callable[..., str]) -> None:
    assert "config.json" in _refused(file({}), "attachment-unknown").message


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": -4}, {"compile_config": 3}, {"watermarking_config": 3}], ids=str
)
def test_generation_settings_that_make_no_sense(
    file: Callable[..., str], config: dict[str, Any], settings: dict[str, Any]
) -> None:
    _refused(file({"config.json": config, "generation_config.json": settings}), "model-config")


def test_generation_settings_that_are_no_json(file: Callable[..., str], config: dict[str, Any]) -> None:
    error = _refused(file({"config.json": config, "generation_config.json": b"["}), "model-config")
    assert error.message == "its generation_config.json is no JSON object"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that leaves a mark when it is run; it is the working directory and importable."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("evil", None)


AUTO_MAP = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.C", "evil.C"]}


@pytest.mark.parametrize("model_type", ["llama", "no-such-architecture"])
def test_code_in_a_file_is_never_run(
    file: Callable[..., str], config: dict[str, Any], evil: Path, model_type: str
) -> None:
    files = {
        "config.json": config | {"auto_map": AUTO_MAP, "model_type": model_type},
        "tokenizer_config.json": {"auto_map": AUTO_MAP, "tokenizer_class": "C"},
        "evil.py": (evil / "evil.py").read_bytes(),
    }
    path = file(files)
    _refused(path, "model-incomplete" if model_type == "llama" else "model-config")
    with bsformat.open(path) as container, pytest.raises(ModelError):
        bitstack.load_tokenizer(container)
    assert not (evil / "mark").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_file_cannot_choose_kernels_from_a_hub(file: Callable[..., str], config: dict[str, Any], key: str) -> None:
    """transformers would fetch and run them; without the key it comes as far as the missing tensors."""
    _refused(file({"config.json": config | {key: "kernels-community/flash-attn2"}}), "model-incomplete")


# Tokenizers


@pytest.mark.parametrize(
    "data", [None, b"{", b"[]", b"{}", b'{"added_tokens": [], "model": {"type": "BPE", "vocab": 3}}'], ids=repr
)
def test_tokenizers_that_cannot_be_read(file: Callable[..., str], config: dict[str, Any], data: bytes | None) -> None:
    files = {"config.json": config} | ({} if data is None else {"tokenizer.json": data})
    with bsformat.open(file(files)) as container, pytest.raises(ModelError, match="no usable tokenizer") as caught:
        bitstack.load_tokenizer(container)
    assert "\n" not in str(caught.value)
    assert caught.value.where == container.uri


# The shell itself


def test_nothing_is_there_before_the_blocks_are(packed: Callable[[str], Any]) -> None:
    with bsformat.open(packed("gpt2").path) as container:
        shell = Shell(container, device=torch.device("cpu"), dtype=torch.float32)
        assert all(p.is_meta for p in shell.model.parameters())
        assert not any(b.is_meta for b in shell.model.buffers())
        with pytest.raises(ModelError) as caught:
            shell.check_complete()
    assert caught.value.reason == "model-incomplete"


def test_modules_are_made_as_ever_afterwards() -> None:
    original = nn.Module.register_parameter
    made = []

    def fail() -> None:
        with meta_parameters():
            made.append(nn.Linear(3, 3))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert made[0].weight.is_meta
    assert nn.Module.register_parameter is original
    assert not nn.Linear(3, 3).weight.is_meta


def test_a_failed_load_closes_what_it_opened_and_only_that(
    file: Callable[..., str], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = bsformat.Container.close
    monkeypatch.setattr(bsformat.Container, "close", lambda self: (closed.append(self), close(self)))
    path = file({"config.json": config})
    _refused(path, "model-incomplete")
    assert len(closed) == 1
    container = bsformat.open(path)
    with pytest.raises(ModelError):
        bitstack.load(container, "100%", "cpu")
    assert len(closed) == 1
    container.close()
