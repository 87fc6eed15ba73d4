"""Baselines beside a file in one run of ``bstk eval``."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import bsformat
from tests.models import PACK_OPTIONS, save_llama
from tests.tools.conftest import Bstk

Failed = Callable[..., str]


@pytest.fixture
def common(tiny_bstk: Path, tiny_model: Path, text_file: Path) -> tuple[object, ...]:
    options = ("--text", text_file, "--budgets", "40KiB", "--window", 64, "--windows", 4, "--device", "cpu")
    return ("eval", tiny_bstk, *options, "--dense", tiny_model)


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    path = tmp_path / "birds.txt"
    path.write_text("birds fly high in the sky over the old boat. " * 40, encoding="utf-8")
    return path


def test_a_baseline_stands_beside_the_file_at_its_bytes(
    bstk: Bstk, common: tuple[object, ...], other_text: Path, tiny_bstk: Path
) -> None:
    options = ("--baselines", "rtn,rtn-symmetric", "--bits", "2,4", "--group-size", 32, "--text", other_text)
    ended = bstk(*common, *options, "--json")
    assert (ended.code, ended.err) == (0, "")
    out = ended.json
    assert [(p["name"], p["bits"], p["embeddings"]) for p in out["baselines"]] == [
        (name, bits, embeddings) for name in ("rtn", "rtn-symmetric") for bits in (2, 4) for embeddings in (16, "same")
    ]
    with bsformat.open(tiny_bstk) as container:
        total, tensors = container.total_bytes, container.model_tensors
        linear = sum(t.rows * t.columns for n, t in tensors.items() if t.packed and "layers" in n)
        token = sum(t.rows * t.columns for n, t in tensors.items() if t.packed and "layers" not in n)
        norms = sum(t.rows * t.columns for t in tensors.values() if not t.packed)
    for p in out["baselines"]:
        zero = p["bits"] if p["name"] == "rtn" else 0
        bits = p["bits"] + (16 + zero) / 32
        quantised, kept = (linear, token) if p["embeddings"] == 16 else (linear + token, 0)
        assert p["resident_bytes"] == pytest.approx(quantised * bits / 8 + 2 * (kept + norms), abs=21)
        assert p["bits_per_parameter"] == pytest.approx(8 * p["resident_bytes"] / (linear + token + norms))
        # The five norms, 64 wide, take 4 bytes an element in a model that computes in float32.
        assert p["ours"]["resident_bytes"] <= min(p["resident_bytes"], total + 640)
        assert p["ours"]["budget"] == p["resident_bytes"]
        for text in (t["name"] for t in out["texts"]):
            share = p["perplexity_by_text"][text] / p["ours"]["perplexity_by_text"][text] - 1
            assert p["advantage"][text] == pytest.approx(share, rel=1e-9)
    wins = {
        (p["name"], p["bits"], p["embeddings"], t) for p in out["baselines"] for t, s in p["advantage"].items() if s < 0
    }
    assert {(w["name"], w["bits"], w["embeddings"], w["text"]) for w in out["baseline_wins"]} == wins
    assert out["skipped"] == []
    assert (out["calibration"], out["dtype"]) == (None, "float32")
    assert out["dense"]["resident_bytes"] == 2 * (linear + token + norms)


def test_ours_beside_a_baseline_is_what_its_bytes_give_as_a_budget(bstk: Bstk, common: tuple[object, ...]) -> None:
    beside = bstk(*common, "--baselines", "rtn", "--bits", "3", "--embeddings", "same", "--json").json["baselines"][0]
    asked = bstk(*common, "--budgets", beside["resident_bytes"], "--json").json["points"][0]
    assert beside["ours"]["perplexity"] == pytest.approx(asked["perplexity"], rel=1e-9)
    assert beside["ours"]["n_blocks"] == asked["n_blocks"]


def test_eight_bits_are_close_to_dense_and_nothing_leaks_into_the_next(bstk: Bstk, common: tuple[object, ...]) -> None:
    both = bstk(*common, "--baselines", "rtn", "--bits", "2,8", "--embeddings", "same", "--json").json
    alone = bstk(*common, "--baselines", "rtn", "--bits", "8", "--embeddings", "same", "--json").json
    dense, (two, eight) = both["dense"]["perplexity"], (p["perplexity"] for p in both["baselines"])
    assert eight == pytest.approx(dense, rel=0.02)
    assert two != pytest.approx(dense, rel=1e-3)
    assert alone["baselines"][0]["perplexity"] == pytest.approx(eight, rel=1e-9)


def test_a_file_too_large_for_a_baselines_bytes_is_not_there(
    bstk: Bstk, common: tuple[object, ...], tiny_bstk: Path, tmp_path: Path
) -> None:
    """A file whose embeddings were kept dense has no prefix as small as a baseline that packs them."""
    from bitstack.tools.evaluation.compare import put_beside

    point = {"resident_bytes": 1000, "perplexity_by_text": {"a": 8.0}}
    assert put_beside([point], {2000: {"perplexity_by_text": {"a": 4.0}}}) == [
        point | {"ours": None, "advantage": None}
    ]


def test_tied_embeddings_count_once(bstk: Bstk, tmp_path: Path, text_file: Path) -> None:
    model = save_llama(tmp_path / "tied", tie_word_embeddings=True)
    packed = tmp_path / "tied.bstk"
    assert bstk("pack", model, "-o", packed, *PACK_OPTIONS).code == 0
    command = ("eval", packed, "--text", text_file, "--budgets", "100%", "--window", 64, "--windows", 1)
    out = bstk(*command, "--dense", model, "--baselines", "rtn", "--bits", "4", "--group-size", 64, "--json").json
    with bsformat.open(packed) as container:
        elements = {name: t.rows * t.columns for name, t in container.model_tensors.items()}
    assert "lm_head.weight" not in elements
    kept, same = out["baselines"]
    embedding = elements["model.embed_tokens.weight"]
    assert out["dense"]["resident_bytes"] == 2 * sum(elements.values())
    assert kept["resident_bytes"] - same["resident_bytes"] == 2 * embedding - (
        embedding // 2 + embedding // 64 * 5 // 2
    )


def test_the_tables_say_what_was_measured_and_who_wins(bstk: Bstk, common: tuple[object, ...], tiny_bstk: Path) -> None:
    options = ("--baselines", "rtn", "--bits", "2,8", "--compare", f"again={tiny_bstk}")
    ended = bstk(*common, *options)
    assert (ended.code, ended.err) == (0, "")
    out = bstk(*common, *options, "--json").json
    assert "ours at these bytes" in ended.out
    assert "again perplexity" in ended.out
    assert ended.out.count(" wins at ") == len(out["baseline_wins"])
    for label in ("dense", "rtn 2 bits, embeddings 16", "rtn 8 bits, embeddings 8"):
        assert sum(line.startswith(f"  {label} ") for line in ended.out.splitlines()) >= 1
    assert out["compare"]["again"]["root"] == out["root"]
    assert out["compare"]["again"]["points"][0]["perplexity"] == pytest.approx(out["points"][0]["perplexity"], rel=1e-9)


def test_everything_is_drawn(bstk: Bstk, common: tuple[object, ...], tmp_path: Path, other_text: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'bitstack[plot]'")
    from matplotlib.figure import Figure

    from bitstack.tools import plot

    png = tmp_path / "all.png"
    options = ("--baselines", "rtn,rtn-symmetric", "--bits", "2,4", "--text", other_text, "--plot", png, "--json")
    out = bstk(*common, *options).json
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    axes = Figure().add_subplot()
    plot.panel(axes, out, other_text.name)
    labels = [line.get_label() for line in axes.lines]
    assert labels == [
        "bstk",
        "rtn, embeddings in 16 bits",
        "rtn, embeddings as the layers",
        "rtn-symmetric, embeddings in 16 bits",
        "rtn-symmetric, embeddings as the layers",
        "dense, 16 bits",
    ]
    drawn = [tuple(map(float, line.get_ydata())) for line in axes.lines[:-1]]
    assert drawn[0] == tuple(p["perplexity_by_text"][other_text.name] for p in out["points"])
    assert [len(ys) for ys in drawn[1:]] == [2, 2, 2, 2]
    assert axes.get_yscale() == "log"


class Broken:
    """A baseline that sets layers to 0; its library fails at 3 bits, and with embeddings, each time halfway."""

    name = "broken"
    calibrated = False

    def check(self) -> dict[str, str]:
        return {}

    def quantise_linear(self, subject: Any, settings: Any) -> Any:
        for target in subject.linear:
            yield target.name, subject.model.get_parameter(target.name) * 0
            if settings.bits == 3:
                raise IndexError("no such\ncodebook")

    def quantise_token(self, subject: Any, settings: Any) -> Any:
        if settings.embeddings == "same":
            for target in subject.token:
                yield target.name, subject.model.get_parameter(target.name) * 0
                raise IndexError("no such embedding")

    def size(self, target: Any, settings: Any) -> int:
        return 100


def test_a_failing_baseline_is_named_and_leaves_no_trace(
    bstk: Bstk, common: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitstack.tools.evaluation import baselines

    good = bstk(*common, "--baselines", "rtn", "--bits", "3", "--embeddings", "16", "--json").json["baselines"][0]
    monkeypatch.setitem(baselines.BASELINES, "hqq", Broken())
    options = ("--baselines", "hqq,rtn", "--bits", "3", "--embeddings", "16")
    ended = bstk(*common, *options, "--json")
    assert (ended.code, ended.err) == (0, "")
    (skipped,) = ended.json["skipped"]
    assert (skipped["name"], skipped["bits"]) == ("broken", 3)
    assert skipped["reason"] == "broken failed: IndexError: no such codebook"
    assert [p["name"] for p in ended.json["baselines"]] == ["rtn"]
    assert ended.json["baselines"][0]["perplexity"] == pytest.approx(good["perplexity"], rel=1e-9)
    assert "not measured: broken 3 bits, embeddings 16: broken failed: IndexError" in bstk(*common, *options).out


def test_a_failing_embedding_leaves_the_layers_as_they_were_quantised(
    bstk: Bstk, common: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitstack.tools.evaluation import baselines

    monkeypatch.setitem(baselines.BASELINES, "hqq", Broken())
    options = ("--baselines", "hqq", "--bits", "4", "--embeddings", "16,same,8", "--json")
    out = bstk(*common, *options).json
    before, after = out["baselines"]
    assert (before["embeddings"], after["embeddings"]) == (16, 8)
    assert before["perplexity"] == pytest.approx(after["perplexity"], rel=1e-9)
    assert before["perplexity"] != pytest.approx(out["dense"]["perplexity"], rel=1e-3)
    assert [s["reason"] for s in out["skipped"]] == ["broken failed: IndexError: no such embedding"]


@pytest.mark.parametrize("name", ["gptq", "awq", "hqq"])
def test_a_library_that_is_missing_is_named_at_once(
    failed: Failed, common: tuple[object, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitstack.tools import eval_command
    from bitstack.tools.evaluation.baselines import libraries

    def heavy(*_: object) -> None:
        raise RuntimeError("nothing heavy may run")

    monkeypatch.setattr(eval_command, "measure", heavy)
    monkeypatch.setattr(libraries, "find_spec", lambda package: None)
    line = failed(*common, "--baselines", f"rtn,{name}")
    package = "hqq" if name == "hqq" else "llmcompressor"
    assert f"pip install 'bitstack[{package}]'" in line
    assert line.endswith("[baseline]")


def test_baselines_need_the_dense_model(failed: Failed, tiny_bstk: Path, text_file: Path) -> None:
    line = failed("eval", tiny_bstk, "--text", text_file, "--budgets", "40KiB", "--baselines", "rtn")
    assert "--dense MODEL" in line


def test_the_dense_model_must_be_that_of_the_file(
    failed: Failed, tiny_bstk: Path, text_file: Path, tmp_path: Path
) -> None:
    other = save_llama(tmp_path / "other", intermediate_size=96)
    line = failed("eval", tiny_bstk, "--text", text_file, "--budgets", "40KiB", "--window", 64, "--dense", other)
    assert "other" in line
    assert "'model.layers.0.mlp" in line


def test_nothing_is_calibrated_on_what_is_measured(
    failed: Failed, common: tuple[object, ...], text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bitstack.tools.evaluation.baselines import BASELINES

    monkeypatch.setattr(type(BASELINES["gptq"]), "check", lambda self: {})
    assert "is measured on" in failed(*common, "--baselines", "gptq", "--calib", text_file)
    assert "no such calibration text" in failed(*common, "--baselines", "gptq", "--calib", tmp_path / "none.txt")


def test_texts_and_files_are_told_apart_by_name(
    failed: Failed, common: tuple[object, ...], text_file: Path, tmp_path: Path, tiny_bstk: Path
) -> None:
    twin = tmp_path / text_file.name
    twin.write_text("the sea")
    assert "another text has the same name" in failed(*common, "--text", twin)
    pair = ("--compare", f"a={tiny_bstk}", "--compare", f"a={tiny_bstk}")
    assert "have one name" in failed(*common, *pair)


@pytest.mark.parametrize(
    "options",
    [
        ("--baselines", "rtn,nothing"),
        ("--bits", "1"),
        ("--bits", "4,,8"),
        ("--embeddings", "9"),
        ("--compare", "name"),
        ("--limit", "0"),
        ("--group-size", "0"),
    ],
)
def test_wrong_usage(bstk: Bstk, options: tuple[str, ...]) -> None:
    ended = bstk("eval", "a", "--text", "b", "--budgets", "1MiB", *options)
    assert (ended.code, ended.out) == (2, "")


@pytest.mark.skipif(find_spec("hqq") is None, reason="hqq is not installed: pip install 'bitstack[hqq]'")
def test_hqq(bstk: Bstk, common: tuple[object, ...]) -> None:
    # 48 does not divide 64 or 128 columns: the last group of every row is shorter.
    options = ("--baselines", "rtn,hqq", "--bits", "3,8", "--group-size", 48)
    ended = bstk(*common, *options, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["skipped"] == []
    points = {(p["name"], p["bits"], p["embeddings"]): p for p in ended.json["baselines"]}
    dense = ended.json["dense"]["perplexity"]
    for embeddings in (16, "same"):
        assert points["hqq", 8, embeddings]["perplexity"] == pytest.approx(dense, rel=0.02)
        assert points["hqq", 3, embeddings]["perplexity"] != pytest.approx(dense, rel=1e-4)
        # Its zero points take 16 bits where those of rtn take as many as a code.
        assert points["hqq", 3, embeddings]["resident_bytes"] > points["rtn", 3, embeddings]["resident_bytes"]
    assert "hqq" in ended.json["versions"]


@pytest.mark.skipif(
    find_spec("llmcompressor") is None, reason="llmcompressor is not installed: pip install 'bitstack[llmcompressor]'"
)
@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_llmcompressor(bstk: Bstk, common: tuple[object, ...], other_text: Path, name: str) -> None:
    calibration = ("--calib", other_text, "--calib-tokens", 256, "--calib-window", 64)
    options = (*common, "--baselines", f"rtn,{name}", *calibration, "--json")
    ended = bstk(*options, "--bits", "3,8", "--group-size", 32)
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["skipped"] == []
    points = {(p["name"], p["bits"], p["embeddings"]): p for p in ended.json["baselines"]}
    dense = ended.json["dense"]["perplexity"]
    for embeddings in (16, "same"):
        ours, rtn = points[name, 3, embeddings], points["rtn", 3, embeddings]
        assert ours["resident_bytes"] == rtn["resident_bytes"]
        assert ours["perplexity"] != pytest.approx(rtn["perplexity"], rel=1e-4)
        assert (ours["calibrated"], rtn["calibrated"]) == (True, False)
        assert points[name, 8, embeddings]["perplexity"] == pytest.approx(dense, rel=0.02)
    assert ended.json["calibration"] == {"text": other_text.name, "windows": 4, "window": 64}
    # Groups that the library cannot do are said so, and the rest of the run goes on.
    ragged = bstk(*options, "--bits", "3", "--group-size", 48, "--embeddings", "16").json
    assert [p["name"] for p in ragged["baselines"]] == ["rtn"]
    assert "no multiple of 48" in ragged["skipped"][0]["reason"]


@pytest.mark.skipif(find_spec("llmcompressor") is None, reason="llmcompressor is not installed")
def test_gptq_is_closer_than_rounding_on_its_own_text(tiny_model: Path) -> None:
    """What GPTQ minimises, the error of a layer's outputs on the calibration text, is below that of rounding."""
    import torch

    from bitstack.checkpoint import open_checkpoint
    from bitstack.targets import find_targets
    from bitstack.text import Windows
    from bitstack.tools.evaluation.baselines import BASELINES, Calibration, Settings, Subject

    checkpoint = open_checkpoint(tiny_model)
    checkpoint.model.config.quantization_config = {"quant_method": "gguf"}  # as a model from a GGUF file has
    targets = [t for t in find_targets(checkpoint.model) if not t.by_token]
    ids = torch.randint(4, 260, (16, 64), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(lambda: Windows("random", ids))
    subject = Subject(checkpoint.model, checkpoint.tokenizer, targets, [], calibration, torch.device("cpu"))
    errors = {}
    inputs = {}
    path = targets[0].uses[0].module
    module = checkpoint.model.get_submodule(path)
    hook = module.register_forward_hook(lambda _, args, out: inputs.setdefault("x", args[0]))
    with torch.inference_mode():
        checkpoint.model(input_ids=ids)
    hook.remove()
    original = checkpoint.model.get_parameter(targets[0].name).detach().clone()
    for name in ("rtn", "gptq"):
        values = dict(BASELINES[name].quantise_linear(subject, Settings(3, 32, 16)))
        errors[name] = float((inputs["x"] @ (values[targets[0].name] - original).T).norm())
    assert errors["gptq"] < errors["rtn"]
    assert torch.equal(checkpoint.model.get_parameter(targets[0].name), original)
