"""Under which names, and in which pieces, checkpoints hold the tensors of a model.

transformers 5 joins and renames tensors while it loads (all experts of a layer become one stack, say) and undoes that
while it saves, so that what it saves is what versions before it, and other programs, read. The same is done here, one
tensor at a time.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bsformat import Container
from bsformat.errors import BstkError

from .safetensors_file import Planned
from .shell import TORCH_DTYPES, empty_model

Array = npt.NDArray[Any]
_log = logging.getLogger(__name__)


class HubLayout:
    """What is stored for each tensor of a model.

    Args:
        tensors: of the model, under the names that it registers them by.
    """

    def __init__(self, container: Container, tensors: Sequence[Planned]) -> None:
        self._pieces = {tensor.name: [tensor] for tensor in tensors}
        self._model: Any = None
        try:
            self._plan(container, tensors)
        except BstkError as error:
            _log.debug("names stay as they are: %s", error)
        except Exception as error:  # rules that this version of transformers has and we do not know
            _log.debug("names stay as they are: %s", error)

    def _plan(self, container: Container, tensors: Sequence[Planned]) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        model = empty_model(container, torch.float32)
        meta = {t.name: torch.empty(t.shape, dtype=TORCH_DTYPES[t.dtype], device="meta") for t in tensors}
        whole: Mapping[str, torch.Tensor] = revert_weight_conversion(model, dict(meta))
        if whole.keys() == meta.keys():
            return
        single = {name: revert_weight_conversion(model, {name: value}) for name, value in meta.items()}
        found = {piece: value.shape for made in single.values() for piece, value in made.items()}
        # What is made of several tensors of the model cannot be made of one.
        if found != {piece: value.shape for piece, value in whole.items()}:
            return
        dtype = {tensor.name: tensor.dtype for tensor in tensors}
        self._pieces = {
            name: [Planned(piece, dtype[name], tuple(value.shape)) for piece, value in made.items()]
            for name, made in single.items()
        }
        self._model = model

    @property
    def tensors(self) -> list[Planned]:
        """Everything that is stored, in the order of the model's tensors."""
        return [piece for pieces in self._pieces.values() for piece in pieces]

    @property
    def sources(self) -> dict[str, str]:
        """The tensor of the model that each piece is made of."""
        return {piece.name: name for name, pieces in self._pieces.items() for piece in pieces}

    def parts(self, tensor: Planned, value: Array) -> dict[str, Array]:
        """The pieces of a tensor of the model.

        Args:
            value: as `bitstack.rebuilding.Prefix.value` gives it.
        """
        if self._model is None:
            return {tensor.name: value}
        from transformers.core_model_loading import revert_weight_conversion

        flat = torch.from_numpy(value.reshape(-1).view(np.uint8).copy())
        whole = flat.view(TORCH_DTYPES[tensor.dtype]).view(tensor.shape)
        made = revert_weight_conversion(self._model, {tensor.name: whole})
        return {name: part.contiguous().view(torch.uint8).numpy() for name, part in made.items()}
