"""`bstk convert`: what it prints, and what it refuses in one line."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitstack
import bsformat
from bitstack.export import attached
from bitstack.progress import Silent
from bitstack.rebuilding import opened
from tests.published import Checkpoint
from tests.tools.conftest import Bstk

pytest_plugins = ["tests.realmodel"]

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


def save_real(packed: Path, folder: Path, levels: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """A real model, as a file has it at a small budget, as a published checkpoint.

    Returns:
        Its tensors that are not decomposed, and the levels of its linear layers.
    """
    from safetensors.numpy import save_file

    raw, parts = {}, {}
    with opened(packed, "40MiB", folder, report=Silent()) as prefix:
        for name, data in (
            attached(prefix.container) | {"config.json": prefix.container.attachment("config.json")}
        ).items():
            (folder / name).write_bytes(data)
        tensors = {name: prefix.value(tensor, "F32") for name, tensor in prefix.tensors.items()}
    for name, weight in tensors.items():
        value = torch.from_numpy(weight)
        if "_proj" not in name:
            raw[name] = value.half().numpy()
            continue
        rest, own = value, []
        for _ in range(levels):
            u, s, v = torch.svd_lowrank(rest.abs(), q=16)
            u, vt = (u * s.sqrt()).half(), (v * s.sqrt()).half().T.contiguous()
            own.append({"qweight": np.packbits((rest >= 0).numpy().reshape(-1)), "u": u.numpy(), "vt": vt.numpy()})
            rest = rest - torch.where(rest >= 0, 1.0, -1.0) * (u.float() @ vt.float())
        parts[name.removesuffix(".weight")] = own
    layers = [f"layer.{path.removeprefix('model.layers.')}" for path in parts]
    steps = [{"memory": level, "layers": dict.fromkeys(layers, level)} for level in range(1, levels + 1)]
    (folder / "compression_config.json").write_text(json.dumps(steps))
    stored = raw | {
        f"{p}.{k}_{i}": v for p, own in parts.items() for i, part in enumerate(own) for k, v in part.items()
    }
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return raw, parts


@pytest.mark.model
def test_a_real_model(bstk: Bstk, smollm2_bstk: Path, tmp_path: Path) -> None:
    """The logits of the converted file are those of a dense model with the reconstructed weights, within 1e-4."""
    from transformers import AutoModelForCausalLM

    levels, folder, out = 2, tmp_path / "published", tmp_path / "out.bstk"
    folder.mkdir()
    raw, parts = save_real(smollm2_bstk, folder, levels)
    tracemalloc.start()
    ended = bstk("convert", "bitstack", folder, "-o", out, "--json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (ended.code, ended.err, ended.json["linears"], ended.json["n_blocks"]) == (0, "", 210, 210 * levels)
    # The embedding, twice while it is compressed, and what the tokenizer takes.
    assert peak < 4 * raw["model.embed_tokens.weight"].nbytes
    model = bitstack.load(out, "100%", "cpu", torch.float32)
    dense: Any = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in raw.items()}
    with bsformat.open(out) as container:
        held = [container.block(b).tensor.name for b in range(model.bitstack.plan.n_blocks)]
    for path, own in parts.items():
        assert held.count(f"{path}.weight") == levels
        signs = [np.unpackbits(level["qweight"]).reshape(len(level["u"]), -1) * 2.0 - 1.0 for level in own]
        products = [sign * (level["u"].astype("f8") @ level["vt"]) for sign, level in zip(signs, own, strict=True)]
        state[f"{path}.weight"] = torch.from_numpy(sum(products)).float()
    assert not dense.load_state_dict(state, strict=False).unexpected_keys
    ids = model.bitstack.tokenizer()("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        wanted = dense(ids).logits
        assert float((model(ids).logits - wanted).abs().max() / wanted.abs().max()) < 1e-4
