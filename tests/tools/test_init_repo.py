"""`bstk init-repo`: what is in the directory, and what its card says."""

import json
from pathlib import Path

import pytest
import yaml

import bsformat
from tests.tools.conftest import Bstk

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.bstk",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


def front_matter(folder: Path) -> tuple[dict[str, object], str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_everything_that_a_hub_wants(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    about = ("--license", "mit", "--base-model", "someone/tiny", "--repo-id", "me/tiny-bstk", "--title", "Tiny")
    ended = bstk("init-repo", tiny_bstk, "-o", folder, *about, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert set(ended.json["files"]) == {item.name for item in folder.iterdir()} == FILES
    assert (folder / "model.bstk").read_bytes() == tiny_bstk.read_bytes()
    front, text = front_matter(folder)
    assert front == {
        "license": "mit",
        "base_model": "someone/tiny",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bitstack", "bstk", "quantized"],
    }
    with bsformat.open(tiny_bstk) as container:
        config = json.loads((folder / "config.json").read_text())
        assert config["quantization_config"] == {
            "quant_method": "bitstack",
            "file": "model.bstk",
            "root": container.root,
        }
        assert config["dtype"] == "float32"
        assert config["architectures"] == ["LlamaForCausalLM"]
        for size in (container.dense_bytes, container.total_bytes, container.minimum_bytes):
            assert f"| {size:,} |" in text
        (curve,) = container.metadata.curves
        for _, value in curve.points:
            assert f"| {value:.2f} |" in text
        assert container.root in text
    assert text.startswith("\n# Tiny\n")
    assert 'from_pretrained("me/tiny-bstk", quantization_config=BitStackConfig(budget="' in text


def test_again_and_of_a_part(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    with bsformat.open(tiny_bstk) as container:
        budget = (container.minimum_bytes + container.total_bytes) // 2
    ended = bstk("init-repo", tiny_bstk, "-o", tmp_path, "--budget", budget)
    assert (ended.code, ended.err) == (0, "")
    assert "blocks" in ended.out
    assert "licence is unknown" in ended.out
    part = (tmp_path / "model.bstk").stat().st_size
    assert part < tiny_bstk.stat().st_size
    front, _ = front_matter(tmp_path)
    assert front["license"] == "unknown"
    again = bstk("init-repo", tiny_bstk, "-o", tmp_path, "--license", "mit")
    assert again.code == 0
    assert (tmp_path / "model.bstk").read_bytes() == tiny_bstk.read_bytes()
    assert front_matter(tmp_path)[0]["license"] == "mit"


def test_again_with_less_and_of_another_file(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "repo", tmp_path / "other.bstk"
    assert bstk("repack", tiny_bstk, "-o", other, "--levels", 2, "--volume-size", "20KiB").code == 0
    assert bstk("init-repo", tiny_bstk, "-o", folder).code == 0
    less = bstk("init-repo", tiny_bstk, "-o", folder, "--budget", "50%", "--json").json
    assert less["n_blocks"] < less["total_blocks"]
    assert (folder / "model.bstk").stat().st_size == less["size"] < tiny_bstk.stat().st_size
    (folder / "vocab.json").write_text("{}")  # of a tokenizer that the next file does not have
    assert bstk("init-repo", other, "-o", folder).code == 0
    with bsformat.open(other) as wanted, bsformat.open(folder / "model.bstk") as container:
        assert container.root == wanted.root
        assert len(container.metadata.volumes) > 1
    assert not (folder / "vocab.json").exists()
    assert bstk("init-repo", tiny_bstk, "-o", folder).code == 0
    assert {item.name for item in folder.iterdir()} == FILES
    assert (folder / "model.bstk").read_bytes() == tiny_bstk.read_bytes()


def test_a_repository_is_not_cut_off_in_its_place(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> None:
    assert bstk("init-repo", tiny_bstk, "-o", tmp_path).code == 0
    ended = bstk("init-repo", tmp_path, "-o", tmp_path, "--budget", "50%")
    assert ended.code == 1
    assert "cannot become shorter" in ended.err
    assert (tmp_path / "model.bstk").read_bytes() == tiny_bstk.read_bytes()


def test_names_in_a_file_are_no_markup(tiny_bstk: Path, tmp_path: Path) -> None:
    from bitstack.tools.card import _plain

    assert _plain("a\n# b | <script>*x*`y`[z](u)") == r"a \# b \| \<script\>\*x\*\`y\`\[z\](u)"


@pytest.mark.parametrize("there", ["thesis.doc", "model.py"])
def test_a_folder_of_somebody_else(bstk: Bstk, tiny_bstk: Path, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("")
    ended = bstk("init-repo", tiny_bstk, "-o", tmp_path)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert there in ended.err
    assert [item.name for item in tmp_path.iterdir()] == [there]
