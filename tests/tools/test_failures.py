"""How the command ends when something is wrong: the exit code, and one line that says what, where and what to do."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bsformat
from bitstack.tools import eval_command, inspect_command, options, plot
from bitstack.tools.cli import main
from tests.bsformat.encoder import Image
from tests.models import PACK_OPTIONS, save_llama, save_tokenizer
from tests.servers import Nginx, Reply, Scripted
from tests.tools.conftest import Bstk, the_line

Failed = Callable[..., str]


def commands(uri: object, text: object = "text.txt") -> list[tuple[object, ...]]:
    """Every command that reads a file, on one."""
    return [
        ("inspect", uri),
        ("inspect", uri, "--json"),
        ("verify", uri),
        ("plan", uri, "--budget", "30KiB"),
        ("generate", uri, "--budget", "30KiB", "--prompt", "a"),
        ("eval", uri, "--text", text, "--budgets", "30KiB"),
    ]


def test_a_file_that_is_no_bstk(failed: Failed, text_file: Path) -> None:
    for command in commands(text_file, text_file):
        line = failed(*command)
        assert line.startswith(f"{text_file}")
        assert line.endswith("[not-bstk]")


def test_a_file_that_is_cut_off(failed: Failed, tiny_bstk: Path, tmp_path: Path, text_file: Path) -> None:
    path = tmp_path / "short.bstk"
    for size in (100, 3000, tiny_bstk.stat().st_size - 1):
        path.write_bytes(tiny_bstk.read_bytes()[:size])
        for command in commands(path, text_file):
            assert failed(*command).endswith("[truncated]")


def test_a_newer_major_version(failed: Failed, tiny_image: Image, tmp_path: Path, text_file: Path) -> None:
    path = tmp_path / "new.bstk"
    tiny_image.superblock |= {"major": 9}
    path.write_bytes(tiny_image.seal())
    for command in commands(path, text_file):
        line = failed(*command)
        assert "9.0" in line
        assert line.endswith("[version-unsupported]")


def test_an_unknown_codec(failed: Failed, tiny_image: Image, tmp_path: Path, text_file: Path) -> None:
    path = tmp_path / "codec.bstk"
    tiny_image.meta["forms"][1]["codec"] = "lz4"
    path.write_bytes(tiny_image.seal())
    for command in commands(path, text_file):
        line = failed(*command)
        assert "'lz4'" in line
        assert line.endswith("[codec-unknown]")


def test_no_such_file(failed: Failed, tmp_path: Path, text_file: Path) -> None:
    for command in commands(tmp_path / "none.bstk", text_file):
        assert failed(*command).endswith("[not-found]")


def test_another_root(failed: Failed, tiny_bstk: Path, text_file: Path) -> None:
    for command in commands(tiny_bstk, text_file):
        line = failed(*command, "--root", "0" * 64)
        assert "[root" in line
        with bsformat.open(tiny_bstk) as container:
            assert container.root in line


def test_a_budget_below_the_minimum(
    failed: Failed, tiny_bstk: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heavy(*_: object) -> None:
        raise RuntimeError("nothing heavy may run")

    monkeypatch.setattr(eval_command, "measure", heavy)
    with bsformat.open(tiny_bstk) as container:
        least = container.minimum_bytes
    for command in (
        ("plan", tiny_bstk, "--budget", "1KiB"),
        ("generate", tiny_bstk, "--budget", "1KiB", "--prompt", "a"),
        ("eval", tiny_bstk, "--text", text_file, "--budgets", "40KiB,1KiB"),
    ):
        line = failed(*command)
        assert "1024 bytes (1.0 KiB)" in line
        assert f"{least} bytes" in line
        assert line.endswith("[budget-too-small]")


def test_a_budget_below_the_minimum_of_the_type(failed: Failed, tiny_bstk: Path) -> None:
    """Norms that the file holds in 16 bits take 32 in the model: the message names what that needs."""
    with bsformat.open(tiny_bstk) as container:
        least = container.minimum_bytes
    line = failed("generate", tiny_bstk, "--budget", least, "--prompt", "a", "--device", "cpu", "--dtype", "float32")
    assert f"a budget of {least} bytes" in line
    assert f"torch.float32: {least + 640} bytes" in line


def test_a_curve_that_does_not_reach(failed: Failed, curved: Path) -> None:
    line = failed("plan", curved, "--perplexity", "19.5")
    assert "the best measured value is 20.000" in line
    assert "19.5" in line
    assert "even the dense" not in line
    assert "even the dense model has 18.000" in failed("plan", curved, "--perplexity", "17.9")


def test_a_file_without_a_curve(failed: Failed, tiny_bstk: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.bstk"
    with bsformat.open(tiny_bstk) as container:
        bsformat.rewrite(container, path, curves=[])
    assert failed("plan", path, "--perplexity", "30").endswith("[curve-missing]")


def test_http_404(failed: Failed, nginx: Nginx, text_file: Path) -> None:
    for command in commands(nginx.url("none.bstk"), text_file):
        line = failed(*command)
        assert nginx.url("none.bstk") in line
        assert "404" in line


def test_http_403(failed: Failed, nginx: Nginx) -> None:
    line = failed("inspect", nginx.url("private/a.bstk"))
    assert "403" in line
    assert line.endswith("[access-denied]")


def test_a_server_that_ignores_ranges(failed: Failed, scripted: Scripted, tiny_bstk: Path) -> None:
    scripted.data = tiny_bstk.read_bytes()
    scripted.reply = lambda request: Reply(200, scripted.data)
    line = failed("inspect", scripted.url())
    assert "ignores byte ranges" in line
    assert line.endswith("[range-unsupported]")


def test_an_unknown_scheme(failed: Failed) -> None:
    line = failed("inspect", "gopherx://host/a.bstk")
    assert line.startswith("gopherx://host/a.bstk")


def test_a_device_that_is_not_there(failed: Failed, tiny_bstk: Path) -> None:
    for device in ("nonsense", "cuda:99", "hpu"):
        line = failed("generate", tiny_bstk, "--budget", "100%", "--prompt", "a", "--device", device)
        assert line.startswith(f"no device '{device}' here")


@pytest.mark.parametrize("prompt", ["", " "])
def test_a_prompt_without_tokens(bstk: Bstk, tiny_bstk: Path, prompt: str) -> None:
    ended = bstk("generate", tiny_bstk, "--budget", "100%", "--raw", "--prompt", prompt, "--max-new-tokens", 1)
    if prompt:
        assert ended.code == 0
    else:
        assert "no tokens" in the_line(ended.err)
        assert ended.code == 1


def test_a_prompt_in_another_encoding_than_that_of_the_locale(bstk_process: Bstk, tiny_bstk: Path) -> None:
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    common = ("generate", tiny_bstk, "--budget", "100%", "--max-new-tokens", "1", "--json", "--prompt")
    assert bstk_process(*common, "größe", env=env).json["text"] == bstk_process(*common, "größe").json["text"]


def test_a_prompt_or_a_seed_that_is_none(bstk: Bstk, tiny_bstk: Path) -> None:
    common = ("generate", tiny_bstk, "--budget", "100%", "--prompt")
    for given, wanted in (
        (("\udcff",), "is no text in UTF-8"),
        (("a", "--seed", 1 << 64), "no whole number from 0 to"),
    ):
        ended = bstk(*common, *given)
        assert ended.code == 2
        assert wanted in ended.err


def test_a_chat_template_that_fails(failed: Failed, tiny_image: Image, tmp_path: Path) -> None:
    path = tmp_path / "template.bstk"
    for item in tiny_image.meta["attachments"]:
        if item["name"] == "chat_template.jinja":
            item["data"] = b"{{ raise_exception('no\nsystem') }}"
            item["length"] = len(item["data"])
    path.write_bytes(tiny_image.seal())
    assert "--raw" in failed("generate", path, "--budget", "100%", "--prompt", "a")


def test_an_evaluation_text_that_is_missing_short_or_no_text(failed: Failed, tiny_bstk: Path, tmp_path: Path) -> None:
    common = ("eval", tiny_bstk, "--budgets", "100%", "--text")
    assert "no such text" in failed(*common, tmp_path / "none.txt")
    short = tmp_path / "short.txt"
    short.write_text("the sea")
    assert "fewer than one window of 256" in failed(*common, short)
    short.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in failed(*common, short)


def test_a_plot_without_matplotlib(
    failed: Failed, tiny_bstk: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    line = failed("eval", tiny_bstk, "--text", text_file, "--budgets", "100%", "--plot", "a.png")
    assert "pip install 'bitstack[plot]'" in line


def test_pack_without_a_model(failed: Failed, tmp_path: Path, tiny_model: Path, text_file: Path) -> None:
    output = tmp_path / "out.bstk"
    assert "no such file or directory" in failed("pack", tmp_path / "none", "-o", output)
    assert "no .gguf" in failed("pack", text_file, "-o", output)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in failed("pack", empty, "-o", output)
    shutil.copy(tiny_model / "config.json", empty)
    assert "no weights" in failed("pack", empty, "-o", output)
    assert "cannot be loaded" in failed("pack", "nobody/nothing", "-o", output)
    assert not output.exists()


def test_nothing_to_pack(failed: Failed, tmp_path: Path) -> None:
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = save_llama(tmp_path / "small", **sizes)
    line = failed("pack", model, "-o", tmp_path / "out.bstk")
    assert line.startswith(f"{model}: has nothing to pack")
    assert os.listdir(tmp_path) == ["small"]


def test_an_output_that_cannot_be(failed: Failed, tiny_model: Path, tmp_path: Path) -> None:
    assert "folder does not exist" in failed("pack", tiny_model, "-o", tmp_path / "none" / "out.bstk")
    assert "is a folder" in failed("pack", tiny_model, "-o", tmp_path)
    there = tmp_path / "there.bstk"
    there.write_bytes(b"mine")
    line = failed("pack", tiny_model, "-o", there)
    assert line == f"{there}: exists already; --force replaces it [output-exists]"
    assert there.read_bytes() == b"mine"


def test_a_calibration_text_that_is_missing(failed: Failed, tiny_model: Path, tmp_path: Path) -> None:
    assert "no such calibration text" in failed("pack", tiny_model, "-o", tmp_path / "o", "--calib", tmp_path / "none")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB, less than the tiny model packs to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(failed: Failed, tiny_model: Path, small_disk: Path) -> None:
    line = failed("pack", tiny_model, "-o", small_disk / "out.bstk", *PACK_OPTIONS)
    assert line.endswith("[disk-full]")
    assert "free some space and run the same command again" in line
    assert os.listdir(small_disk) == ["out.bstk.work"]
    assert not [p for p in (small_disk / "out.bstk.work").iterdir() if p.suffix == ".part"]


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("unpack", "a"),
        ("inspect",),
        ("inspect", "a", "b"),
        ("inspect", "a", "--roo", "0" * 64),
        ("inspect", "a", "--root", "12"),
        ("inspect", "a", "--root", "g" * 64),
        ("inspect", "a", "--storage-option", "key"),
        ("inspect", "a", "--storage-option", "=value"),
        ("plan", "a"),
        ("plan", "a", "--budget", "80MiB", "--perplexity", "30"),
        ("plan", "a", "--budget", "80Mx"),
        ("plan", "a", "--budget", "-1"),
        ("plan", "a", "--budget", ""),
        ("plan", "a", "--perplexity", "0"),
        ("plan", "a", "--perplexity", "nan"),
        ("generate", "a", "--budget", "1MiB"),
        ("generate", "a", "--prompt", "b", "--max-new-tokens", "0"),
        ("generate", "a", "--prompt", "b", "--temperature", "-1"),
        ("generate", "a", "--prompt", "b", "--dtype", "int8"),
        ("eval", "a", "--text", "b"),
        ("eval", "a", "--text", "b", "--budgets", "1MiB,,2MiB"),
        ("eval", "a", "--text", "b", "--budgets", "1MiB", "--window", "1"),
        ("pack", "a"),
        ("pack", "a", "-o", "b", "--linear-ranks", "0"),
        ("pack", "a", "-o", "b", "--linear-ranks", "4097"),
        ("pack", "a", "-o", "b", "--linear-ranks", "8,x"),
        ("pack", "a", "-o", "b", "--token-ranks", ""),
        ("pack", "a", "-o", "b", "--linear-factors", "F32"),
        ("pack", "a", "-o", "b", "--linear-stretch", "0"),
        ("pack", "a", "-o", "b", "--linear-stretch", "inf"),
        ("pack", "a", "-o", "b", "--calib-window", "1"),
        ("pack", "a", "-o", "b", "--calib-tokens", "0"),
        ("pack", "a", "-o", "b", "--eval-curve-points", "1.5"),
        ("pack", "a", "-o", "b", "--seed", "-1"),
    ],
    ids=" ".join,
)
def test_wrong_usage(bstk: Bstk, args: tuple[str, ...]) -> None:
    ended = bstk(*args)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("usage: bstk")
    assert "error: " in ended.err.splitlines()[-1]


def test_wrong_usage_of_a_process(bstk_process: Bstk) -> None:
    ended = bstk_process("plan", "a", "--budget", "80Mx")
    assert ended.code == 2
    assert "'80Mx' is no size" in ended.err


def test_a_process_fails_with_one_line(bstk_process: Bstk, text_file: Path) -> None:
    for command in commands(text_file, text_file):
        ended = bstk_process(*command)
        assert (ended.code, ended.out) == (1, "")
        assert the_line(ended.err).endswith("[not-bstk]")


def test_an_interrupt_is_one_line(bstk: Bstk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_command, "run", raiser(KeyboardInterrupt()))
    ended = bstk("inspect", "a")
    assert (ended.code, ended.out, ended.err) == (130, "", "bstk: error: interrupted\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("one\ntwo"), "ValueError: one two (unexpected; BSTK_DEBUG=1 shows where it arose)"),
        (ZeroDivisionError(), "ZeroDivisionError (unexpected; BSTK_DEBUG=1 shows where it arose)"),
        (MemoryError(), "out of memory: name a smaller budget, or another device"),
        (OSError(errno.EIO, "Input/output error", "/a"), "/a: Input/output error"),
    ],
)
def test_what_nobody_foresaw_is_one_line(
    bstk: Bstk, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.delenv("BSTK_DEBUG", raising=False)
    monkeypatch.setattr(inspect_command, "run", raiser(error))
    ended = bstk("inspect", "a")
    assert (ended.code, ended.err) == (1, f"bstk: error: {says}\n")


def test_a_traceback_only_where_it_is_asked_for(bstk: Bstk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSTK_DEBUG", "1")
    monkeypatch.setattr(inspect_command, "run", raiser(ValueError("one")))
    assert "Traceback" in bstk("inspect", "a").err


def raiser(error: BaseException) -> Callable[[Any], int]:
    """A command that ends so."""

    def run(args: object) -> int:
        raise error

    return run


def test_a_reader_that_leaves_is_no_error(tiny_bstk: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bitstack.tools.cli", "inspect", str(tiny_bstk)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_an_output_that_is_full_is_one_line(tiny_bstk: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bitstack.tools.cli", "inspect", str(tiny_bstk)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert the_line(done.stderr) == "No space left on device"


def test_a_narrow_encoding_is_no_error(bstk_process: Bstk, tiny_image: Image, tmp_path: Path) -> None:
    path = tmp_path / "ü.bstk"
    tiny_image.meta["writer"] = "日本"
    path.write_bytes(tiny_image.seal())
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = bstk_process("inspect", path, env=env)
    assert (ended.code, ended.err) == (0, "")
    assert "\\u65e5\\u672c" in ended.out


@pytest.mark.parametrize("command", [("--help",), ("pack", "--help"), ("recipes", "default")])
def test_help_in_a_narrow_encoding(bstk_process: Bstk, command: tuple[str, ...]) -> None:
    ended = bstk_process(*command, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.isascii()


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_is_closed_is_no_error(tiny_bstk: Path, closed: int) -> None:
    command = f"exec {sys.executable} -P -m bitstack.tools.cli verify {tiny_bstk} {closed}>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("OK root ") == (closed == 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=b", ("a", "b")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
        ("a=1", ("a", 1)),
        ("a=true", ("a", True)),
        ('a={"b": [1]}', ("a", {"b": [1]})),
        ("a=http://h:1", ("a", "http://h:1")),
    ],
)
def test_storage_options(text: str, value: tuple[str, Any]) -> None:
    assert options.storage_option(text) == value


@pytest.mark.parametrize("command", ["pack", "inspect", "verify", "plan", "generate", "eval"])
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    program = (
        "import sys\n"
        "from bitstack.tools.cli import main\n"
        "try:\n"
        f"    main([{command!r}, '--help'])\n"
        "except SystemExit as stop:\n"
        "    heavy = [name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules]\n"
        "    sys.exit(stop.code or bool(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: bstk {command}")


def test_version(bstk: Bstk) -> None:
    ended = bstk("--version")
    assert (ended.code, ended.out) == (0, f"bstk {bsformat.__version__}\n")


def test_the_work_of_another_packing(bstk: Bstk, failed: Failed, tiny_model: Path, tmp_path: Path) -> None:
    kept = ("--work", tmp_path / "work", "--keep-work")
    assert bstk("pack", tiny_model, "-o", tmp_path / "a.bstk", *PACK_OPTIONS, *kept).code == 0
    line = failed("pack", tiny_model, "-o", tmp_path / "b.bstk", *PACK_OPTIONS, *kept, "--seed", "1")
    assert line.startswith(f"{tmp_path}/work: holds the unfinished work of another packing (another recipe)")
    assert line.endswith("[work-folder]")
    line = failed("pack", tiny_model, "-o", tmp_path / "b.bstk", *PACK_OPTIONS, "--work", tiny_model)
    assert "other things in it" in line
    assert (tiny_model / "config.json").exists()


def test_packing_on_a_device_that_is_not_there(failed: Failed, tiny_model: Path, tmp_path: Path) -> None:
    line = failed("pack", tiny_model, "-o", tmp_path / "b.bstk", "--device", "cuda:99")
    assert line.endswith("[device]")
    assert not list(tmp_path.iterdir())


def test_a_model_that_says_nothing_about_a_text_is_named(failed: Failed, text_file: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    widths = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = save_tokenizer(tmp_path / "model")
    BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **widths)).save_pretrained(
        tmp_path / "model"
    )
    path = tmp_path / "encoder.bstk"
    pack = ("pack", tmp_path / "model", "-o", path, *PACK_OPTIONS)
    assert failed(*pack).startswith(f"{tmp_path / 'model'}: is a BertModel, which writes no text of its own")
    assert main([str(part) for part in (*pack, "--calib", text_file)]) == 0
    line = failed("eval", path, "--text", text_file, "--budgets", "100%")
    assert line == f"{path}: is a BertModel, which says nothing about a text [model-task]"
