"""Packing: what is refused, what is written, and that it is the same every time."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
import bsformat
from bitstack import corpus, curve, pipeline
from bitstack.checkpoint import open_checkpoint
from bitstack.corpus import texts
from bitstack.packing import raw_dtype
from bitstack.progress import Advance, Silent
from bitstack.shell import TORCH_DTYPES
from bitstack.targets import Survey
from bitstack.work import WorkFolder
from bsformat.errors import ModelError, WriteError


@pytest.fixture(scope="module")
def recipe(small: bitstack.Recipe) -> bitstack.Recipe:
    """Few levels: a file in half a second."""
    few = {"designs": ("s1 b2",), "tail": "b1", "ranks": (2,)}
    token = {"designs": ("b1",), "tail": "b1", "ranks": (2,)}
    return small.changed(
        {f"decompose.linear.{name}": value for name, value in few.items()}
        | {f"decompose.token.{name}": value for name, value in token.items()}
        | {"calib.tokens": 64, "eval.curve_points": 2}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save_model: Any) -> Path:
    path: Path = save_model(make_model("llama-gqa"), tmp_path_factory.mktemp("packing") / "model")
    return path


def test_the_same_bytes_every_time(folder: Path, recipe: bitstack.Recipe, tmp_path: Path) -> None:
    """In this process, and in another one with another hash seed."""
    first, second, third = (tmp_path / f"{n}.bstk" for n in "abc")
    root = bitstack.pack(folder, first, recipe=recipe).root
    torch.manual_seed(123)
    assert bitstack.pack(folder, second, recipe=recipe).root == root
    code = (
        "import json, sys, bitstack\nrecipe = bitstack.Recipe.from_json(json.loads(sys.argv[3]))\n"
        "bitstack.pack(sys.argv[1], sys.argv[2], recipe=recipe)\n"
    )
    threads, given = torch.get_num_threads(), json.dumps(recipe.to_json())
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import torch; torch.set_num_threads({threads})\n{code}",
            str(folder),
            str(third),
            given,
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_another_seed_is_another_file(folder: Path, recipe: bitstack.Recipe, tmp_path: Path) -> None:
    a = bitstack.pack(folder, tmp_path / "a.bstk", recipe=recipe)
    b = bitstack.pack(folder, tmp_path / "b.bstk", recipe=recipe.changed({"seed": 1}))
    assert a.root != b.root


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("calib", ["self", "text"])
def test_a_weight_that_is_no_number(
    make_model: Callable[..., Any],
    save_model: Callable[..., Path],
    recipe: bitstack.Recipe,
    tmp_path: Path,
    name: str,
    calib: str,
) -> None:
    model = make_model("llama-untied")
    model.get_parameter(name).view(-1)[5] = float("nan")
    save_model(model, tmp_path / "model")
    (tmp_path / "text").write_text("some words " * 40)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=f"{name} has 1 values that are NaN or infinite") as caught:
        bitstack.pack(
            tmp_path / "model",
            tmp_path / "out" / "x.bstk",
            recipe=recipe,
            calib="self" if calib == "self" else tmp_path / "text",
        )
    assert caught.value.reason == "weight-values"
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interruption_leaves_the_old_file_and_the_work(
    folder: Path, recipe: bitstack.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is interrupted: the draft is written by then, and only the curve is measured again."""
    output = tmp_path / "x.bstk"
    output.write_bytes(b"old")

    def fail(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(curve, "perplexity", fail)
        with pytest.raises(KeyboardInterrupt):
            bitstack.pack(folder, output, recipe=recipe)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bstk", "x.bstk.work"]
    assert output.read_bytes() == b"old"
    report = _Recorder()
    again = bitstack.pack(folder, output, recipe=recipe, report=report)
    assert list(report.stages) == ["measure curve"]
    assert [p.name for p in tmp_path.rglob("*")] == ["x.bstk"]
    assert bitstack.pack(folder, tmp_path / "y.bstk", recipe=recipe).root == again.root


def test_nowhere_to_write(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="the folder does not exist"):
        bitstack.pack(folder, tmp_path / "missing" / "x.bstk")


def test_nothing_to_pack(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "survey", lambda model: Survey([], {}))
    save_model(make_model("llama-tied"), tmp_path / "model")
    with pytest.raises(ModelError, match="nothing to pack") as caught:
        bitstack.pack(tmp_path / "model", tmp_path / "x.bstk")
    assert caught.value.reason == "nothing-to-pack"


class _Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        done = self.stages.setdefault(title, [total, done])

        def advance(count: int) -> None:
            done[1] += count

        yield advance


def test_every_stage_reaches_its_total(folder: Path, recipe: bitstack.Recipe, tmp_path: Path) -> None:
    report = _Recorder()
    bitstack.pack(folder, tmp_path / "x.bstk", recipe=recipe, report=report)
    assert list(report.stages) == [
        *("read weights", "write text", "gradients", "layers", "measure dense", "write", "measure curve")
    ]
    for title, (total, done) in report.stages.items():
        assert 0 < total == done, title


# The texts


def _all_windows(folder: Path, recipe: bitstack.Recipe, text: Path | str) -> tuple[torch.Tensor, ...]:
    """For the statistics, held out, and for tuning."""
    checkpoint = open_checkpoint(folder)
    with tempfile.TemporaryDirectory() as place, WorkFolder(Path(place) / "work", {}) as work:
        found = texts(
            checkpoint.model, checkpoint.tokenizer, "causal", text, recipe, Silent(), work, contextlib.nullcontext
        )
    return found.calib.ids, found.heldout.ids, found.tune


def _windows(folder: Path, recipe: bitstack.Recipe, text: Path | str) -> tuple[torch.Tensor, torch.Tensor]:
    calibration, heldout, tune = _all_windows(folder, recipe, text)
    assert len(tune) == 0  # the recipe does not tune
    return calibration, heldout


def test_held_out_text_is_other_text(folder: Path, small: bitstack.Recipe, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} is a number. " for n in range(200)))
    calibration, heldout = _windows(folder, small, text)
    assert calibration.shape == (8, 32)
    assert heldout.shape == (2, 32)
    own, other = ({tuple(w) for w in ids.tolist()} for ids in (calibration, heldout))
    assert len(own) == 8
    assert not own & other


def test_own_held_out_text_is_other_text(folder: Path, small: bitstack.Recipe) -> None:
    calibration, heldout = _windows(folder, small, "self")
    assert (calibration.shape, heldout.shape) == ((8, 32), (2, 32))
    assert not {tuple(w) for w in calibration.tolist()} & {tuple(w) for w in heldout.tolist()}


def test_long_own_text_is_written_in_parts(
    folder: Path, small: bitstack.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = _windows(folder, small, "self")
    monkeypatch.setattr(corpus, "_AT_ONCE", 128)  # four windows
    counts = []
    write = corpus.self_windows

    def counting(*args: Any, **options: Any) -> Any:
        counts.append(args[3])
        return write(*args, **options)

    monkeypatch.setattr(corpus, "self_windows", counting)
    calibration, heldout = _windows(folder, small, "self")
    assert counts == [4, 4, 2]
    assert (calibration.shape, heldout.shape) == ((8, 32), (2, 32))
    assert len({tuple(w) for w in torch.cat([calibration, heldout]).tolist()}) == 10
    assert calibration.shape == whole.shape


@pytest.mark.parametrize(("tokens", "shapes"), [(64, (1, 1)), (5 * 32, (4, 1)), (10 * 32, (8, 2)), (99 * 32, (8, 2))])
def test_a_short_text_is_shared(
    folder: Path, small: bitstack.Recipe, tmp_path: Path, tokens: int, shapes: tuple[int, int]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + n * n % 23) for n in range(tokens)))
    assert tuple(len(ids) for ids in _windows(folder, small, text)) == shapes


def test_text_to_tune_on_is_other_text(folder: Path, small: bitstack.Recipe, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} is a number. " for n in range(200)))
    for source in (text, "self"):
        parts = _all_windows(folder, small.changed({"tune.steps": 5}), source)
        assert [tuple(p.shape) for p in parts] == [(8, 32), (2, 32), (5, 32)]
        assert len({tuple(w) for w in torch.cat(parts).tolist()}) == 15


@pytest.mark.parametrize(
    ("windows", "shapes"), [(2, (1, 1, 0)), (5, (3, 1, 1)), (10, (6, 2, 2)), (14, (8, 2, 4)), (15, (8, 2, 5))]
)
def test_a_short_text_is_shared_with_tuning(
    folder: Path, small: bitstack.Recipe, tmp_path: Path, windows: int, shapes: tuple[int, ...]
) -> None:
    """Held-out text first, then a third of what is left; the statistics get the rest."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n:31}\n" for n in range(windows)))
    parts = _all_windows(folder, small.changed({"tune.steps": 5}), text)
    assert tuple(map(len, parts)) == shapes
    assert len({tuple(w) for w in torch.cat(parts).tolist()}) == sum(shapes)


def test_a_text_of_one_window(folder: Path, small: bitstack.Recipe, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("x" * 63)
    with pytest.raises(ModelError, match="fewer than two windows of 32") as caught:
        _windows(folder, small, text)
    assert (caught.value.reason, caught.value.where) == ("text", str(text))


def test_windows_fit_the_model(folder: Path, small: bitstack.Recipe) -> None:
    calibration, heldout = _windows(folder, small.changed({"calib.window": 4096}), "self")
    assert calibration.shape == (4, 64)  # the model has 64 positions
    assert heldout.shape == (1, 64)


# Raw tensors


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([1.0, -0.5, 3e38]).bfloat16().float(), "BF16"),
        (torch.tensor([1.0, 1 + 2**-10]), "F16"),
        (torch.tensor([1.0, 1 + 2**-12]), "F32"),
        (torch.tensor([1 + 2**-10, 1e30]), "F32"),  # the one fits float16 only, the other bfloat16 only
        (torch.tensor([1.0, 2.0]), "BF16"),
        (torch.tensor([1.0]).double(), "BF16"),
        (torch.tensor([1 + 2**-12]).double(), "F32"),
        (torch.tensor([1 + 2**-40], dtype=torch.float64), "F64"),
        (torch.tensor([1.0]).half(), "F16"),
        (torch.tensor([1.0]).bfloat16(), "BF16"),
        (torch.tensor([1, 2]), "I64"),
        (torch.tensor([1], dtype=torch.int32), "I32"),
        (torch.tensor([1], dtype=torch.int16), "I16"),
        (torch.tensor([1], dtype=torch.int8), "I8"),
        (torch.tensor([1], dtype=torch.uint8), "U8"),
        (torch.tensor([True, False]), "BOOL"),
        (torch.tensor(0.25), "BF16"),
    ],
)
def test_raw_tensors_take_the_smallest_type_that_is_exact(values: torch.Tensor, expected: str) -> None:
    assert raw_dtype(values, "x") == expected
    stored = TORCH_DTYPES[expected]
    assert torch.equal(values.to(stored).to(values.dtype), values)


def test_types_without_a_name() -> None:
    with pytest.raises(ModelError, match=r"phase is of type torch\.complex64") as caught:
        raw_dtype(torch.zeros(1, dtype=torch.complex64), "phase")
    assert caught.value.reason == "weight-dtype"


def test_raw_tensors_survive_in_their_own_type(packed: Callable[[str], Any]) -> None:
    pack = packed("qwen2")
    with bsformat.open(pack.path) as container:
        tensor = container.model_tensors["model.layers.0.self_attn.q_proj.bias"]
        number = next(i for i in range(len(container)) if container.block(i).tensor == tensor)
        data = torch.frombuffer(bytearray(container.read_block(number)), dtype=torch.float32)
    assert tensor.dtype == "F32"
    assert torch.equal(data, pack.model.model.layers[0].self_attn.q_proj.bias)


def test_blocks_come_by_worth(packed: Callable[[str], Any]) -> None:
    with bsformat.open(packed("llama-tied").path) as container:
        blocks = [container.block(i) for i in range(len(container))]
    required = [b for b in blocks if not b.tensor.packed]
    rest = blocks[len(required) :]
    assert all(b.tensor.packed for b in rest)
    worths = [b.worth for b in rest]
    assert worths == sorted(worths, reverse=True)
    assert worths[0] > 100 * worths[-1] >= 0
    # Not level by level: that is what the order is for.
    assert [b.level for b in rest] != sorted(b.level for b in rest)


def test_token_matrices_in_several_groups(
    make_model: Callable[..., Any],
    save_model: Callable[..., Path],
    recipe: bitstack.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bitstack.targets.EMBEDDING_GROUP_ROWS", 100)
    model = make_model("llama-tied")
    save_model(model, tmp_path / "model")
    bitstack.pack(tmp_path / "model", tmp_path / "x.bstk", recipe=recipe.changed({"decompose.token.tail": "b2 b2"}))
    loaded = bitstack.load(tmp_path / "x.bstk", "100%", "cpu")
    loaded.bitstack.close()
    table = loaded.model.embed_tokens
    assert [table.packed.levels(g) for g in range(3)] == [5, 5, 5]
    error = (table.weight - model.model.embed_tokens.weight).norm(dim=1) / model.model.embed_tokens.weight.norm(dim=1)
    assert float(error.max()) < 0.8  # measured: 0.3, and 0.5 for a token that the text lacks; a wrong row leaves 1.4
    ids = torch.tensor([[0, 99, 100, 199, 200, 257]])
    torch.testing.assert_close(table(ids)[0], table.weight[ids[0]])
