"""What travels in a file beside the weights, for libraries that want it in a folder."""

import os
import tempfile
from typing import Any

from bsformat import Container
from bsformat.errors import ModelError


def load_tokenizer(container: Container) -> Any:
    """The tokenizer that travels in a file.

    Raises:
        ModelError: the file has none, or this version of transformers cannot read it, or its files have names that no
            folder takes. SourceError, FormatError: an attachment cannot be read, or is damaged.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for item in container.metadata.attachments:
            _put(folder, item.name, container.attachment(item.name), container.uri)
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the libraries behind it raise whatever they like on files they cannot read
            detail = " ".join(str(error).replace(folder, "").split())[:300]
            raise ModelError(f"holds no usable tokenizer: {detail}", where=container.uri) from None


def _put(folder: str, name: str, data: bytes, where: str) -> None:
    path = os.path.join(folder, *name.split("/"))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:  # a name can be too long, or that of a folder too (spec §4.5); and disks are full
        raise ModelError(
            f"its attachment {name!r} cannot be put into a temporary folder ({error.strerror}): free some space, or "
            "repack the model with names that a folder takes",
            where=where,
        ) from None
