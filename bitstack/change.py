"""Blocks that come and go together: prepared beside the model, then made part of it in one moment."""

from collections.abc import Callable, Mapping

import torch

from bsformat import Block
from bsformat.errors import ResizeError

from .packed import Levels, PackedTensor
from .staging import HostCopies, Staging, uploads_to


class Change:
    """What a model is to become: other levels in some of its chains.

    Preparing allocates, copies and checks, and may fail at any block; the model knows nothing of it. `commit` then only
    puts one object in the place of another, or writes rows of tables on a GPU, and undoes what it did if that fails.

    Args:
        packed: the packed tensors of the model, by name.
        raw: takes the blocks that are no levels of a chain, their bytes on ``device``. They are those that every
            prefix has: they go in at once, because without all of them there is no model yet that a change could
            disturb.
        device: where those go.
    """

    def __init__(
        self,
        packed: Mapping[str, PackedTensor],
        raw: Callable[[Block, torch.Tensor], None],
        device: torch.device,
    ) -> None:
        self._packed, self._raw, self._device = packed, raw, device
        self._uploads: dict[torch.device, Staging | HostCopies] = {}
        self._before: dict[str, dict[int, Levels]] = {}
        self._after: dict[str, dict[int, Levels]] = {}

    def put(self, block: Block, payload: bytes | memoryview) -> None:
        """Prepare the next level of a chain; the payload is copied to where the chain is, not kept."""
        tensor = self._packed.get(block.tensor.name)
        if tensor is None:
            self._raw(block, self._upload(payload, self._device))
            return
        data = self._upload(payload, tensor.device)
        group, after = self._at(block)
        after[group] = after[group].pushed(block.form, data)

    def drop(self, block: Block) -> None:
        """Prepare to give up the last level of a chain."""
        group, after = self._at(block)
        after[group] = after[group].popped()

    def _upload(self, payload: bytes | memoryview, device: torch.device) -> torch.Tensor:
        if device not in self._uploads:
            self._uploads[device] = uploads_to(device)
        return self._uploads[device](payload)

    def settle(self) -> None:
        """Wait until all that was put is where it belongs. To be called by the thread that put it, before `commit`."""
        while self._uploads:
            self._uploads.popitem()[1].finish()

    def _at(self, block: Block) -> tuple[int, dict[int, Levels]]:
        name, group = block.tensor.name, block.first_row // block.tensor.group_rows
        after = self._after.setdefault(name, {})
        if group not in after:
            after[group] = self._before.setdefault(name, {})[group] = self._packed[name].groups[group]
        return group, after

    def commit(self) -> None:
        """Make it so. Nothing may compute with the model meanwhile.

        What it frees is freed by `forget`, or with this object.

        Raises:
            ResizeError: the model is not the one any more that this was prepared for; it stays as it is.
        """
        for name, before in self._before.items():
            groups = self._packed[name].groups
            if any(groups[number] is not levels for number, levels in before.items()):
                raise ResizeError(
                    f"tensor {name!r} was moved to another device, or changed, while the model was being resized: "
                    "resize again",
                    reason="resize-conflict",
                )
        begun: list[str] = []
        try:
            for name, after in self._after.items():
                begun.append(name)
                self._packed[name].put(after)
        except BaseException:
            for name in reversed(begun):
                self._packed[name].put(self._before[name])
            raise

    def forget(self) -> None:
        """Let go of all that is not, or not any more, part of the model."""
        self._before, self._after = {}, {}
