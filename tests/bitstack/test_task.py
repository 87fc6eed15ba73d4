"""Models that are not causal: which class they are, what text they are given, and what they cannot do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack.calibrate import calibrate
from bitstack.checkpoint import open_checkpoint
from bitstack.evaluation import perplexity
from bitstack.targets import find_targets
from bitstack.task import MASKED_SHARE, METRICS, prepare, task_of
from bitstack.text import Windows
from bsformat.errors import ModelError


def _config(kind: str, *architectures: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, architectures=list(architectures) or None)


@pytest.mark.parametrize(
    ("kind", "architecture", "task"),
    [
        ("llama", "LlamaForCausalLM", "causal"),
        ("llama", None, "causal"),
        ("llama", "LlamaModel", "features"),
        ("gemma3", "Gemma3ForConditionalGeneration", "causal"),
        ("bert", "BertForMaskedLM", "masked"),
        ("bert", "BertLMHeadModel", "causal"),
        ("bert", "BertModel", "features"),
        ("modernbert", "ModernBertForMaskedLM", "masked"),
        ("distilbert", None, "masked"),
        ("t5", "T5ForConditionalGeneration", "seq2seq"),
        ("t5", None, "seq2seq"),
        # Transformers counts it among the masked ones, too.
        ("bart", "BartForConditionalGeneration", "seq2seq"),
    ],
)
def test_the_task_of_an_architecture(kind: str, architecture: str | None, task: str) -> None:
    assert task_of(_config(kind, *([architecture] if architecture else []))) == task


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("clip", "CLIPModel"), ("vit", None), ("vit", "ViTModel"), ("distilbert", "DistilBertForSequenceClassification")],
)
def test_architectures_that_are_no_language_models(kind: str, architecture: str | None) -> None:
    with pytest.raises(ModelError, match="what can be packed are") as caught:
        task_of(_config(kind, *([architecture] if architecture else [])))
    assert caught.value.reason == "model-task"
    assert (architecture or kind) in caught.value.message


def test_names_in_a_configuration_that_are_no_names() -> None:
    assert task_of(_config("llama", 3, None)) == "causal"  # type: ignore[arg-type]


@pytest.fixture
def windows() -> Windows:
    return Windows("random", torch.randint(0, 256, (200, 32), generator=torch.Generator().manual_seed(0)))


def test_masks(windows: Windows, tokenizer_with_mask: Any) -> None:
    before = windows.ids.clone()
    masked = prepare(windows, "masked", None, tokenizer_with_mask, 0)
    assert torch.equal(windows.ids, before)
    assert (masked.task, masked.name, masked.ids.shape) == ("masked", "random", before.shape)
    chosen = masked.labels != -100
    assert torch.equal(masked.labels[chosen], before[chosen])
    # The ends are what the tokenizer puts there, and nobody is asked for them.
    assert (masked.ids[:, 0] == 256).all()
    assert (masked.ids[:, -1] == 257).all()
    assert not chosen[:, [0, -1]].any()
    inner, kept = chosen[:, 1:-1], masked.ids == before
    total = inner.numel()
    # Within four standard deviations of the share.
    assert abs(int(inner.sum()) - MASKED_SHARE * total) < 4 * (MASKED_SHARE * (1 - MASKED_SHARE) * total) ** 0.5
    assert torch.equal(masked.ids[:, 1:-1][~inner], before[:, 1:-1][~inner])
    hidden = masked.ids[chosen] == tokenizer_with_mask.mask_token_id
    count = int(chosen.sum())
    assert abs(int(hidden.sum()) - 0.8 * count) < 4 * (0.16 * count) ** 0.5
    assert abs(int(kept[chosen].sum()) - 0.1 * count) < 5 * (0.09 * count) ** 0.5
    again, other = (prepare(windows, "masked", None, tokenizer_with_mask, seed) for seed in (0, 1))
    assert torch.equal(again.ids, masked.ids)
    assert not torch.equal(other.ids, masked.ids)


def test_a_masked_model_needs_a_mask(windows: Windows, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="has no mask token") as caught:
        prepare(windows, "masked", None, tokenizer, 0)
    assert caught.value.reason == "model-task"


def test_halves_of_a_text(windows: Windows, make_model: Callable[..., Any], tokenizer_with_mask: Any) -> None:
    halves = prepare(windows, "seq2seq", make_model("t5"), tokenizer_with_mask, 0)
    assert torch.equal(halves.ids, windows.ids[:, :16])
    assert torch.equal(halves.labels, windows.ids[:, 16:])
    assert torch.equal(halves.decoder_ids[:, 1:], windows.ids[:, 16:-1])
    assert (halves.decoder_ids[:, 0] == 0).all()


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_perplexity_is_of_the_labels_alone(
    windows: Windows, make_model: Callable[..., Any], tokenizer_with_mask: Any, kind: str
) -> None:
    model = make_model(kind)
    few = Windows("few", windows.ids[:5])
    prepared = prepare(few, "masked" if kind == "bert" else "seq2seq", model, tokenizer_with_mask, 0)
    inputs = {"input_ids": prepared.ids}
    if kind == "t5":
        inputs["decoder_input_ids"] = prepared.decoder_ids
    wanted = torch.nn.functional.cross_entropy(model(**inputs).logits.flatten(0, 1), prepared.labels.flatten()).exp()
    assert perplexity(model, prepared, batch_tokens=64) == pytest.approx(float(wanted), rel=1e-4)


def test_an_encoder_without_a_head_feels_every_output(make_model: Callable[..., Any], windows: Windows) -> None:
    """Its statistics are those of half the squared error: at the last layer's norm each output has one, in the mean."""
    model = make_model("bert-encoder")
    model.encoder.layer[1].output.LayerNorm = torch.nn.Identity()
    few = Windows("few", windows.ids, "features")
    statistics = calibrate(model, find_targets(model), few, batch_tokens=640)
    # y = dense(x) + residual is what is returned, so its gradient is the random projection itself, and the pooler's.
    got = statistics.linear["encoder.layer.1.output.dense.weight"].output
    assert (got > 0.9).all()
    # The pooler's output is one a window of 32 tokens, through tanh.
    pooler = statistics.linear["pooler.dense.weight"].output
    assert (pooler > 0).all()
    assert (pooler < 1.5 / 32).all()


@pytest.mark.parametrize("kind", ["bert", "bert-encoder", "t5"])
def test_text_is_asked_for_where_a_model_writes_none(packed: Callable[[str], Any], tmp_path: Path, kind: str) -> None:
    pack = packed(kind)
    with pytest.raises(ModelError, match="--calib FILE") as caught:
        bitstack.pack(pack.folder, tmp_path / "out.bstk")
    assert type(pack.model).__name__ in caught.value.message
    assert caught.value.where == str(pack.folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "task"), [("bert", "masked"), ("t5", "seq2seq"), ("bert-encoder", "features")])
def test_the_file_says_what_was_measured(packed: Callable[[str], Any], kind: str, task: str) -> None:
    pack = packed(kind)
    assert open_checkpoint(pack.folder).task == task
    with bsformat.open(pack.path) as container:
        assert json.loads(container.attachment("config.json"))["architectures"] == [type(pack.model).__name__]
        assert container.metadata.extra["calibration"]["text"] == "text.txt"
        curves = container.metadata.curves
    assert [c.metric for c in curves] == ([METRICS[task]] if task in METRICS else [])
    for curve in curves:
        assert len(curve.points) == 3


def test_a_file_for_a_task_that_is_none(packed: Callable[[str], Any], tmp_path: Path) -> None:
    """A configuration in a file names a class; nothing but the tasks known here is built."""
    source = packed("bert").path
    with bsformat.open(source) as container:
        config = json.loads(container.attachment("config.json")) | {"architectures": ["BertForSequenceClassification"]}
        config["model_type"] = "distilbert"
    path = tmp_path / "made.bstk"
    with bsformat.Writer(path, [bsformat.Tensor("x", (1,), "F32")]) as writer:
        writer.put(0, bsformat.Form("raw"), bytes(4))
        writer.attach("config.json", json.dumps(config).encode())
        writer.finish([])
    with pytest.raises(ModelError, match="BertForSequenceClassification") as caught:
        bitstack.load(path, "100%", "cpu")
    assert (caught.value.reason, caught.value.where) == ("model-task", str(path))
