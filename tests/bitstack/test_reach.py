"""How long a text a model can read."""

from pathlib import Path
from typing import Any

import pytest

import bitstack
import bsformat
from bitstack.reach import readable_tokens

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("kind", "settings", "tokens"),
    [
        ("llama", {"max_position_embeddings": 300}, 300),
        ("gpt2", {"n_positions": 300}, 300),
        ("bert", {"max_position_embeddings": 512}, 512),
        # Positions are numbered from behind that of the padding token.
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("mpnet", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ("qwen2", {"max_position_embeddings": 512, "rope_parameters": _YARN}, 2048),
        ("qwen2", {"max_position_embeddings": 4096, "rope_parameters": _YARN}, 4096),
        ("bloom", {}, None),
        ("t5", {}, None),
    ],
)
def test_tokens_that_a_model_reads(kind: str, settings: dict[str, Any], tokens: int | None) -> None:
    from transformers import AutoConfig

    assert readable_tokens(AutoConfig.for_model(kind, **settings)) == tokens


def test_a_model_with_fewer_tokens_than_positions_is_packed(
    small: bitstack.Recipe, tokenizer_with_mask: Any, tmp_path: Path
) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    widths = {"hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(vocab_size=259, max_position_embeddings=34, pad_token_id=1, **widths)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "model")
    tokenizer_with_mask.save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the sea is wide and birds fly " * 40)
    recipe = small.changed({"calib.text": str(text), "calib.window": 1024})
    bitstack.pack(tmp_path / "model", tmp_path / "model.bstk", recipe=recipe)
    with bsformat.open(tmp_path / "model.bstk") as container:
        assert container.metadata.curves[0].window == 32
