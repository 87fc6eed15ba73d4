"""`bstk convert`: what it prints, and what it refuses in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

import bsformat
from tests.published import Checkpoint
from tests.tools.conftest import Bstk

Failed = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Checkpoint(tmp_path / "tiny", num_hidden_layers=1).write()


def test_in_words_and_as_json(bstk: Bstk, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    ended = bstk("convert", "bitstack", folder, "-o", out)
    assert (ended.code, ended.err) == (0, "")
    with bsformat.open(out) as container:
        assert f"root    {container.root}" in ended.out
    assert "7 linear layers of 4 levels of rank 17, in the order: published" in ended.out
    assert "5 tensors" in ended.out
    assert bstk("verify", out).code == 0
    assert '"format": "bitstack"' in bstk("inspect", out, "--json").out
    ended = bstk("convert", "bitstack", folder, "-o", out, "--force", "--order", "worth", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert (ended.json["order"], ended.json["n_blocks"], ended.json["levels"]) == ("worth", 28, [4, 4])
    prompt = ("--prompt", "the sea", "--device", "cpu", "--max-new-tokens", 4, "--json")
    assert bstk("generate", out, *prompt, "--budget", "60%").code == 0


def test_refused(bstk: Bstk, failed: Failed, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    assert bstk("convert", "gptq", folder, "-o", out).code == 2
    assert bstk("convert", "bitstack", folder, "-o", out, "--order", "best").code == 2
    shard = folder / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    line = failed("convert", "bitstack", folder, "-o", out)
    assert str(shard) in line
    assert line.endswith("copy it again [weights]")
    shard.unlink()
    assert "model-00002-of-00003.safetensors" in failed("convert", "bitstack", folder, "-o", out)
    shard.write_bytes(data)
    order = folder / "compression_config.json"
    order.unlink()
    assert "--order worth finds one [order]" in failed("convert", "bitstack", folder, "-o", out)
    out.write_text("mine")
    assert failed("convert", "bitstack", folder, "-o", out).endswith("--force replaces it [output-exists]")
    assert out.read_text() == "mine"
    assert bstk("convert", "bitstack", folder, "-o", out, "--force", "--order", "average").code == 0
    assert "no directory" in failed("convert", "bitstack", tmp_path / "none", "-o", out, "--force")
