"""What stands in a loaded model for methods of transformers that would tie or write dense weights."""

from typing import Any

from bsformat.errors import ModelError


def tied_already(*_: Any, **__: Any) -> None:
    """Stands in for `PreTrainedModel.tie_weights`."""


def refuse_saving(model: Any, uri: str) -> None:
    """Let ``save_pretrained`` of a model say that it cannot write packed weights: what it wrote would lack them all.

    Adapters that transformers itself put on the model are saved as ever.
    """
    usual = model.save_pretrained

    def save_pretrained(*args: Any, **kwargs: Any) -> Any:
        if getattr(model, "_hf_peft_config_loaded", False):
            return usual(*args, **kwargs)
        raise ModelError(
            "save_pretrained has no dense weights to write: bstk fetch makes a file of a prefix, bstk init-repo a "
            "directory, and a model that from_pretrained loads from that can be saved",
            where=uri,
            reason="model-saving",
        )

    vars(model)["save_pretrained"] = save_pretrained
