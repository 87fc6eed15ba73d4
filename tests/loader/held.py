"""What a loaded model really holds in memory, counted from storages and not from what it says of itself."""

from typing import Any

import torch

from bitstack.packed import PackedTensor
from bitstack.tools.bench.resizing import allocated


def packed_tensors(model: Any) -> list[PackedTensor]:
    """Every `PackedTensor` of a model once, though embedding and head may share one."""
    found = {id(m.packed): m.packed for m in model.modules() if hasattr(m, "packed")}
    return list(found.values())


def payloads(model: Any) -> list[list[list[bytes]]]:
    """The bytes of all payloads: [tensor][chain][level]."""
    return [[[data.numpy().tobytes() for _, data in g.payloads] for g in p.groups] for p in packed_tensors(model)]


def held_bytes(model: Any) -> int:
    """Bytes of all weights: of the storages of parameters, scales and payloads, each storage once."""
    tensors = [p for p in model.parameters() if not p.is_meta]
    for packed in packed_tensors(model):
        assert packed.row_scale is not None
        assert packed.col_scale is not None
        tensors += [
            packed.row_scale,
            packed.col_scale,
            *(data for group in packed.groups for _, data in group.payloads),
        ]
    return _bytes(tensors)


def all_storages() -> int:
    """Bytes of the storages of all tensors of this process that lie in host memory."""
    return allocated(torch.device("cpu"))


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
