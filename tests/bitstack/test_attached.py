"""Attachments that become files of a folder, for what reads a tokenizer."""

import os

import pytest

import bitstack
import bsformat
from bsformat.errors import ModelError
from tests.bsformat.encoder import sample


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["n" * 300], ["f/" + "n" * 300]])
def test_names_that_no_folder_takes(names: list[str]) -> None:
    """A reader takes them: they only should not be so."""
    image = sample()
    image.attachments = []
    image.meta["attachments"] = [{"name": name, "length": 2, "data": b"{}"} for name in names]
    with bsformat.open(bsformat.MemorySource(image.seal(), "m.bstk")) as container:
        with pytest.raises(ModelError, match=r"^m\.bstk: its attachment '.*' cannot be put") as caught:
            bitstack.load_tokenizer(container)
        assert "\n" not in str(caught.value)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with bsformat.open(bsformat.MemorySource(sample().seal(), "m.bstk")) as container:
        monkeypatch.setattr(os, "makedirs", full)
        with pytest.raises(ModelError, match="No space left on device"):
            bitstack.load_tokenizer(container)


def test_a_file_without_a_tokenizer() -> None:
    source = bsformat.MemorySource(sample().seal(), "m.bstk")
    with bsformat.open(source) as container, pytest.raises(ModelError, match="holds no usable tokenizer"):
        bitstack.load_tokenizer(container)
