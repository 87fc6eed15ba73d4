import dataclasses
import subprocess
import sys

import pytest
import torch

from bitstack import kernels
from bitstack.kernels import Chain, SignBlock, payload_bytes

F8 = torch.float8_e4m3fn


def test_the_surface_is_flat_and_importing_it_loads_no_triton():
    assert kernels.__all__ == sorted(kernels.__all__)
    assert all(hasattr(kernels, name) for name in kernels.__all__)
    code = "import sys, bitstack.kernels; sys.exit(any(m.split('.')[0] == 'triton' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((576, 1536, 8, "F8_E4M3"), 576 * 192 + (576 + 1536) * 8 + 32),
        ((3, 13, 5, "F16"), 3 * 2 + (3 + 13) * 5 * 2),
        ((1, 1, 1, "F8_E4M3"), 1 + 2 + 4),
    ],
)
def test_payload_bytes(sizes, expected):
    assert payload_bytes(*sizes) == expected


@pytest.mark.parametrize("sizes", [(0, 1, 1, "F16"), (1, 0, 1, "F16"), (1, 1, 0, "F16"), (1, 1, 1, "F32")])
def test_payload_bytes_refuses(sizes):
    with pytest.raises(ValueError, match=r"must be positive|known: F16, F8_E4M3"):
        payload_bytes(*sizes)


def _payload(block: SignBlock) -> torch.Tensor:
    tensors = [block.signs, block.u, block.v] + ([] if block.scale is None else [block.scale])
    return torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])


@pytest.mark.parametrize("offset", range(5))
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 13, 5), (4, 16, 8), (1, 1, 1)])
def test_from_bytes_restores_the_block_and_copies_only_what_is_misaligned(make_chain, m, n, k, fp8, offset):
    block = make_chain(m, n, [(k, fp8)]).blocks[0]
    raw = _payload(block)
    file = torch.full((offset + len(raw),), 255, dtype=torch.uint8)
    payload = file[offset:]
    payload.copy_(raw)
    read = SignBlock.from_bytes(payload, m, n, k, "F8_E4M3" if fp8 else "F16")
    assert torch.equal(_payload(read), raw)
    assert (read.rows, read.columns, read.rank, read.nbytes) == (m, n, k, len(raw))
    assert len(raw) == payload_bytes(m, n, k, "F8_E4M3" if fp8 else "F16")
    place = offset
    for tensor in (read.signs, read.u, read.v, read.scale):
        if tensor is not None:
            shared = tensor.untyped_storage().data_ptr() == file.untyped_storage().data_ptr()
            assert shared == (place % tensor.dtype.itemsize == 0)
            assert shared or tensor.untyped_storage().nbytes() == tensor.nbytes
            place += tensor.nbytes


def test_from_bytes_refuses_another_length_dtype_or_layout():
    size = payload_bytes(2, 9, 3, "F16")
    for payload in (
        torch.zeros(size + 1, dtype=torch.uint8),
        torch.zeros(size - 1, dtype=torch.uint8),
        torch.zeros(size, dtype=torch.int8),
        torch.zeros(1, size, dtype=torch.uint8),
        torch.zeros(2 * size, dtype=torch.uint8)[::2],
    ):
        with pytest.raises(ValueError, match="payload must be"):
            SignBlock.from_bytes(payload, 2, 9, 3, "F16")


def _parts(**changes):
    parts = {
        "signs": torch.zeros(2, 2, dtype=torch.uint8),
        "u": torch.zeros(2, 3, dtype=torch.float16),
        "v": torch.zeros(9, 3, dtype=torch.float16),
        "scale": torch.ones(3),
    }
    return parts | changes


def test_a_block_is_frozen_and_has_no_other_attributes():
    block = SignBlock(**_parts(scale=None))
    with pytest.raises(dataclasses.FrozenInstanceError):
        block.u = block.v
    assert not hasattr(block, "__dict__")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signs": torch.zeros(2, 1, dtype=torch.uint8)}, "signs must be"),
        ({"signs": torch.zeros(2, 2)}, "signs must be"),
        ({"signs": torch.zeros(3, 2, dtype=torch.uint8)}, "signs must be"),
        ({"signs": torch.zeros(4, dtype=torch.uint8)}, "two dimensions"),
        ({"signs": torch.zeros(2, 4, dtype=torch.uint8)[:, ::2]}, "contiguous"),
        ({"u": torch.zeros(2, 3)}, "float16 or float8"),
        ({"u": torch.zeros(2, 3).to(F8)}, "one dtype"),
        ({"u": torch.zeros(2, 4).half()}, "rank 4"),
        ({"u": torch.zeros(2, 0).half(), "v": torch.zeros(9, 0).half()}, "empty"),
        ({"v": torch.zeros(9, 3, device="meta").half()}, "v is on meta"),
        ({"scale": torch.ones(4)}, "scale must be"),
        ({"scale": torch.ones(3).double()}, "scale must be"),
        ({"scale": torch.ones(3, device="meta")}, "scale is on meta"),
        ({"u": torch.zeros(2, 3).to(F8), "v": torch.zeros(9, 3).to(F8), "scale": None}, "need a scale"),
    ],
)
def test_a_block_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        SignBlock(**_parts(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "positive"),
        ({"row_scale": torch.ones(3)}, "row_scale must be"),
        ({"col_scale": torch.ones(9).double()}, "col_scale must be"),
        ({"col_scale": torch.ones(9, device="meta")}, "col_scale is on meta"),
        ({"rows": 3, "row_scale": torch.ones(3)}, "block 0 is 2 by 9, the chain 3 by 9"),
    ],
)
def test_a_chain_refuses(changes, message):
    parts = {"rows": 2, "columns": 9, "row_scale": torch.ones(2), "col_scale": torch.ones(9)}
    with pytest.raises(ValueError, match=message):
        Chain(**(parts | changes), blocks=(SignBlock(**_parts()),))


def test_nbytes_of_a_chain(make_chain):
    chain = make_chain(3, 13, [(5, False), (2, True)], scales=torch.float16)
    assert chain.nbytes == 2 * 16 + payload_bytes(3, 13, 5, "F16") + payload_bytes(3, 13, 2, "F8_E4M3")
