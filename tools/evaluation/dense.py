"""The dense model of a run: its weights as they are, and one working copy that baselines are measured in."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from bitstack.checkpoint import Checkpoint
from bitstack.targets import Target, find_targets
from bsformat import Container
from bsformat.errors import ModelError

from . import sizes


class Dense:
    """Holds the original weights on the CPU in float32, rounded to 16 bits, and one copy where it is computed.

    Quantised weights are written into the copy matrix by matrix; the originals bring it back afterwards. So memory is
    one float32 model on the CPU and one model on the device, however many baselines there are.

    Attributes:
        name, tokenizer: of the checkpoint.
        model: the originals. Not to be written to.
        working: the copy, on the device, in the type that is computed in.
        linear: targets that are weights of linear layers.
        token: targets that are embeddings, output heads, or both at once.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.tokenizer = checkpoint.name, checkpoint.tokenizer
        self.model = checkpoint.model
        _round_to_16_bits(self.model, checkpoint.dtype)
        targets = find_targets(self.model)
        self.linear: list[Target] = [t for t in targets if not t.by_token]
        self.token: list[Target] = [t for t in targets if t.by_token]
        self.working = copy.deepcopy(self.model).to(device)
        for parameter in self.working.parameters():  # not buffers: rotary frequencies stay in float32
            parameter.data = parameter.data.to(dtype)
        self._originals = dict(self.model.named_parameters())
        self._parameters = dict(self.working.named_parameters())
        self._sizes = sizes.tensor_sizes(self.model)
        self._changed: set[str] = set()

    @property
    def parameters(self) -> int:
        """Elements of all tensors; a tied one once."""
        state = self.model.state_dict()
        return sum(state[name].numel() for name in self._sizes)

    def check_is(self, container: Container) -> None:
        """Refuse to compare a file with another model than it was packed from, as far as shapes tell.

        Raises:
            ModelError: a tensor of the file is missing here, or has another shape.
        """
        state = self.model.state_dict()
        for name, tensor in container.model_tensors.items():
            if name not in state or tuple(state[name].shape) != tuple(tensor.shape):
                raise ModelError(
                    f"is not what {container.uri} was packed from: tensor {name!r} differs", where=self.name
                )

    def resident_bytes(self, packed: Mapping[str, int]) -> int:
        """Bytes of all tensors, those in ``packed`` (name -> bytes) quantised, all others in 16 bits."""
        return sum((self._sizes | dict(packed)).values())

    @property
    def changed(self) -> frozenset[str]:
        """Parameters of the working copy that are not as they were."""
        return frozenset(self._changed)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write the new value of a parameter into the working copy."""
        self._changed.add(name)
        with torch.no_grad():
            self._parameters[name].copy_(value)

    def restore(self, but: frozenset[str] = frozenset()) -> None:
        """Undo every `put`, but those of some parameters."""
        with torch.no_grad():
            for name in self._changed - but:
                self._parameters[name].copy_(self._originals[name])
        self._changed &= but


def _round_to_16_bits(model: Any, dtype: torch.dtype) -> None:
    """Give every parameter a value that its counted 16 bits can hold: float16, or bfloat16 where that overflows."""
    with torch.no_grad():
        for parameter in model.parameters():
            half = parameter.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)
            if not torch.isfinite(half).all():
                half = parameter.to(torch.bfloat16)
            parameter.copy_(half)
