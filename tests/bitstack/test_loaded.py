"""What a loaded model refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bitstack
from bsformat import BstkError
from bsformat.errors import ModelError


def test_a_checkpoint_without_its_weights_is_not_written(tiny_bstk: Path, tmp_path: Path) -> None:
    model = bitstack.load(tiny_bstk, "100%", "cpu")
    with pytest.raises(ModelError, match="bstk init-repo") as caught:
        model.save_pretrained(tmp_path / "saved")
    assert (caught.value.reason, caught.value.where) == ("model-saving", str(tiny_bstk))
    assert not (tmp_path / "saved").exists()


def test_adapters_are_saved(tiny_bstk: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = bitstack.load(tiny_bstk, "100%", "cpu")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("dtype", ["float16", "auto", torch.float64, torch.int8])
def test_a_type_that_nothing_computes_in(tiny_bstk: Path, dtype: Any) -> None:
    with pytest.raises(ModelError, match=f"not in {dtype!r}: pass one of them as dtype=") as caught:
        bitstack.load(tiny_bstk, "100%", "cpu", dtype)
    assert caught.value.reason == "model-dtype"


def test_a_device_that_is_not_there(tiny_bstk: Path) -> None:
    with pytest.raises(BstkError, match="no device 'gpu' here") as caught:
        bitstack.load(tiny_bstk, "100%", "gpu")
    assert caught.value.reason == "device"
