"""Chains of blocks of every kind: planes, low-rank blocks without signs, and few entries."""

import pytest
import torch

from bitstack.kernels import Chain, LowRankBlock, SignBlock, SparseBlock, linear, rebuild, rows
from bitstack.kernels.reference import dense, entries
from tests.kernels.conftest import may_vary

F8 = torch.float8_e4m3fn
EVERY = [
    (8, True),
    "plane",
    "plane",
    ("sparse", 0.02),
    ("lowrank", 5, True),
    (3, False),
    "plane",
    ("lowrank", 2, False),
]


def _check(chain, bound, backend, *, tokens=(2, 9), dtypes=(torch.float32,)):
    """Products, the matrix and rows of it, against float64; outputs are poisoned, and the same again the next time,
    where it could be otherwise."""
    exact, repeat = dense(chain), may_vary((backend, chain.device.type))
    g = torch.Generator().manual_seed(1)
    for dtype in dtypes:
        for count in tokens:
            x = torch.randn(count, chain.columns, generator=g).to(chain.device, dtype)
            y = x.double() @ exact.T
            out = torch.full((count, chain.rows), float("nan"), dtype=dtype, device=chain.device)
            linear(x, chain, out=out, backend=backend)
            assert ((out.double() - y).abs() <= bound(chain, y, dtype, x)).all(), f"{count} tokens of {dtype}"
            if repeat:
                assert torch.equal(linear(x, chain, backend=backend), out)
        w = torch.full((chain.rows, chain.columns), float("nan"), dtype=dtype, device=chain.device)
        rebuild(chain, dtype=dtype, out=w, backend=backend)
        assert ((w.double() - exact).abs() <= bound(chain, exact, dtype)).all(), f"matrix in {dtype}"
        if repeat:
            assert torch.equal(rebuild(chain, dtype=dtype, backend=backend), w)
        ids = torch.randint(-chain.rows, chain.rows, (min(70, 3 * chain.rows),), generator=g).to(chain.device)
        got = rows(chain, ids, dtype=dtype, backend=backend)
        assert ((got.double() - exact[ids]).abs() <= bound(chain.select(ids), exact[ids], dtype)).all()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (7, 1), (64, 8), (65, 127), (131, 65)])
def test_chains_of_every_kind(make_chain, bound, case, m, n):
    backend, device = case
    _check(make_chain(m, n, EVERY, device=device, garbage=True), bound, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_of_every_kind(make_chain, bound, case, dtype):
    backend, device = case
    _check(make_chain(67, 61, EVERY, device=device, scales=torch.bfloat16), bound, backend, dtypes=[dtype])


@pytest.mark.parametrize(
    "blocks",
    [
        [("sparse", 0.1)],
        [("sparse", 0.0)],
        [("sparse", 1.0)],
        [("sparse", 0.3), ("sparse", 0.3)],
        [("sparse", 0.1), (3, True)],
        [(3, False), ("sparse", 0.1)],
        [("lowrank", 3, True)],
        [("lowrank", 3, False), ("sparse", 0.1)],
        [("lowrank", 3, False), ("lowrank", 17, True), (1, True)],
        [(2, False), *["plane"] * 15],
    ],
    ids=str,
)
def test_first_last_and_alone(make_chain, bound, case, blocks):
    backend, device = case
    # Interpreted, seconds each: types are tested with blocks of every kind.
    dtypes = [torch.float32, torch.half] if may_vary(case) else [torch.float32]
    _check(make_chain(131, 37, blocks, device=device), bound, backend, dtypes=dtypes)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("rank", [1, 15, 16, 17, 33, 65])
def test_ranks(make_chain, bound, case, rank, fp8):
    backend, device = case
    for blocks in ([("lowrank", rank, fp8)], [(rank, fp8), "plane"]):
        _check(make_chain(37, 53, blocks, device=device), bound, backend)


@pytest.mark.parametrize(
    "places",
    [
        [0],
        [131 * 29 - 1],
        [64 * 29 + 3],
        [*range(5 * 29, 6 * 29)],
        [*range(0, 131 * 29, 29)],
        [0, 130 * 29 + 28],
        [],
    ],
    ids=["first", "last", "one", "a row", "a column", "both ends", "none"],
)
def test_where_entries_lie(make_sparse, bound, case, places):
    """Rows and tiles without entries, and one with many."""
    backend, device = case
    m, n = 131, 29
    block = make_sparse(m, n, torch.tensor(places, dtype=torch.int64), 0x38 + torch.arange(len(places)) % 8, device)
    chain = Chain(m, n, torch.full((m,), 0.5, device=device), torch.full((n,), 2.0, device=device), (block,))
    expected = torch.zeros(m * n, dtype=torch.float64)
    expected[places] = (1 + torch.arange(len(places)).double() % 8 / 8) / 256
    assert torch.equal(dense(chain).cpu().flatten(), expected)
    _check(chain, bound, backend)


def test_columns_beyond_32767(make_sparse, bound, case):
    backend, device = case
    m, n, places = 3, 65536, [32767, 32768, 65535, 65536 + 40000, 3 * 65536 - 1]
    block = make_sparse(m, n, torch.tensor(places), torch.arange(0x38, 0x3D), device)
    chain = Chain(m, n, torch.ones(m, device=device), torch.ones(n, device=device), (block,))
    assert dense(chain).flatten().nonzero().flatten().tolist() == places
    x = torch.randn(1, n, device=device)
    y = x.double() @ dense(chain).T
    assert ((linear(x, chain, backend=backend).double() - y).abs() <= bound(chain, y, x.dtype, x)).all()
    assert torch.equal(rebuild(chain, backend=backend).double(), dense(chain))


def test_offsets_beyond_32767(make_sparse, bound, case):
    """Rows that begin late in their tile; and rows taken so often that 16 bits do not count their entries."""
    backend, device = case
    m, n = 50, 900
    places = torch.tensor([*range(45 * n), *range(49 * n, 49 * n + 5)])
    block = make_sparse(m, n, places, torch.arange(len(places)) % 127, device)
    assert block.row_starts()[-6:].tolist() == [45 * n] * 5 + [45 * n + 5]
    chain = Chain(m, n, torch.ones(m, device=device), torch.ones(n, device=device), (block,))
    x = torch.randn(1, n, device=device)
    y = x.double() @ dense(chain).T
    assert ((linear(x, chain, backend=backend).double() - y).abs() <= bound(chain, y, x.dtype, x)).all()
    ids = torch.tensor([44] * 60 + [49] * 9 + [47, 44], device=device)
    chosen = chain.select(ids)
    ends = [60 * n + 5 * i for i in range(1, 10)]
    assert chosen.blocks[0].row_starts()[61:].tolist() == [*ends, ends[-1], ends[-1] + n]
    assert torch.equal(rebuild(chosen, backend=backend).double(), dense(chain)[ids])


def test_every_float8_value_of_an_entry(make_sparse, case):
    backend, device = case
    codes = torch.arange(256)
    expected = codes.to(torch.uint8).view(F8).float() / 256
    for m, n in ((256, 1), (1, 256)):
        block = make_sparse(m, n, codes, codes, device)
        chain = Chain(m, n, torch.ones(m, device=device), torch.ones(n, device=device), (block,))
        got = rebuild(chain, backend=backend).flatten().cpu()
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())


def test_a_plane_is_half_of_what_it_refines(make_chain, case):
    """With all signs set, p planes bring the magnitudes to 2 − 2^−p of what they are."""
    backend, device = case
    for fp8 in (False, True):
        base = make_chain(9, 12, [(2, fp8)], device=device).blocks[0]
        plus = torch.full((18,), 255, dtype=torch.uint8, device=device)
        chain = Chain(9, 12, torch.ones(9, device=device), torch.ones(12, device=device))
        chain = Chain(
            9, 12, chain.row_scale, chain.col_scale, (SignBlock(plus.view(9, 2), base.u, base.v, base.scale),)
        )
        one = dense(chain)
        for planes in range(1, 4):
            chain = chain.add("plane", plus)
            torch.testing.assert_close(dense(chain), one * (2 - 2.0**-planes), rtol=1e-12, atol=0)
            torch.testing.assert_close(rebuild(chain, backend=backend).double(), dense(chain), rtol=1e-4, atol=1e-5)


def test_planes_share_the_factors(make_chain):
    chain = make_chain(40, 100, [(4, True), "plane", "plane", (2, False), "plane"])
    first, one, two, second, three = chain.blocks
    assert one.u is two.u is first.u
    assert one.v is two.v is first.v
    assert one.scale is two.scale is first.scale
    assert (three.u, three.v, three.scale) == (second.u, second.v, None)
    assert [block.gain for block in chain.blocks] == [1, 0.5, 0.25, 1, 0.5]
    signs, scales = 40 * 13, 4 * 140
    assert chain.nbytes == 4 * 140 + (signs + scales + 16) + 2 * signs + (signs + 2 * 2 * 140) + signs


def _payload(block):
    parts = [block.scale, block.starts, block.offsets, block.indices, block.values]
    return torch.cat([part.view(torch.uint8) for part in parts])


@pytest.mark.parametrize("m", [1, 63, 64, 65, 130])
def test_entries_of_a_payload_are_views_of_it(make_chain, m):
    block = make_chain(m, 9, [("sparse", 0.3)]).blocks[0]
    payload = _payload(block)
    assert len(payload) == 4 + 4 * -(-m // 64) + 2 * m + 3 * block.entries == block.nbytes
    read = SparseBlock.from_bytes(payload, m, 9)
    assert (read.rows, read.columns, read.entries, read.nbytes) == (m, 9, block.entries, len(payload))
    assert torch.equal(entries(read), entries(block))
    assert {t.untyped_storage().data_ptr() for t in read.tensors} == {payload.untyped_storage().data_ptr()}
    # At an odd address: copies of what is not aligned, and the same values.
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), payload])[1:]
    assert torch.equal(_payload(SparseBlock.from_bytes(odd, m, 9)), payload)
    for wrong in (payload[:-1], payload[:-2], payload[: 4 + 4 * -(-m // 64) + 2 * m - 1], payload.view(1, -1)):
        with pytest.raises(ValueError, match="payload must be"):
            SparseBlock.from_bytes(wrong, m, 9)


@pytest.mark.parametrize("fp8", [False, True])
def test_a_lowrank_payload_is_that_of_a_sign_block_without_signs(make_chain, fp8):
    block = make_chain(5, 13, [("lowrank", 4, fp8)]).blocks[0]
    payload = torch.cat([t.flatten().view(torch.uint8) for t in block.tensors])
    read = LowRankBlock.from_bytes(payload, 5, 13, 4, "F8_E4M3" if fp8 else "F16")
    assert (read.rows, read.columns, read.rank, read.nbytes) == (5, 13, 4, len(payload))
    for mine, other in zip(read.tensors, block.tensors, strict=True):
        assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))
    with pytest.raises(ValueError, match="payload must be"):
        LowRankBlock.from_bytes(payload[:-1], 5, 13, 4, "F8_E4M3" if fp8 else "F16")


def _parts(**changes):
    parts = {
        "columns": 9,
        "scale": torch.ones(1),
        "starts": torch.zeros(2, dtype=torch.int32),
        "offsets": torch.zeros(65, dtype=torch.int16),
        "indices": torch.zeros(3, dtype=torch.int16),
        "values": torch.zeros(3).to(F8),
    }
    return parts | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": 0}, "columns must be 1 to 65536"),
        ({"columns": 65537}, "columns must be 1 to 65536"),
        ({"scale": torch.ones(2)}, "scale must be"),
        ({"scale": torch.ones(1).double()}, "scale must be"),
        ({"starts": torch.zeros(1, dtype=torch.int32)}, "starts must be"),
        ({"starts": torch.zeros(2, dtype=torch.int64)}, "starts must be"),
        ({"offsets": torch.zeros(0, dtype=torch.int16)}, "offsets must be"),
        ({"offsets": torch.zeros(65)}, "offsets must be"),
        ({"indices": torch.zeros(4, dtype=torch.int16)}, "indices must be"),
        ({"indices": torch.zeros(6, dtype=torch.int16)[::2]}, "indices must be contiguous"),
        ({"values": torch.zeros(3, dtype=torch.uint8)}, "values must be"),
        ({"scale": torch.ones(1, device="meta")}, "scale is on meta"),
    ],
)
def test_a_sparse_block_refuses(changes, message):
    SparseBlock(**_parts())
    with pytest.raises(ValueError, match=message):
        SparseBlock(**_parts(**changes))


@pytest.mark.parametrize(
    ("blocks", "kind", "message"),
    [
        ([], "plane", "must come after"),
        ([("sparse", 0.1)], "plane", "must come after"),
        ([("lowrank", 2, False)], "plane", "must come after"),
        ([(2, False), ("sparse", 0.1)], "plane", "must come after"),
        ([(2, False)], "plane", "payload must be"),
        ([(2, False)], "raw", "unknown kind of block 'raw'"),
        ([(2, False)], "sign", "unknown factor type"),
    ],
)
def test_what_cannot_be_added_to_a_chain(make_chain, blocks, kind, message):
    with pytest.raises(ValueError, match=message):
        make_chain(5, 9, blocks).add(kind, torch.zeros(11, dtype=torch.uint8), 1, "")


def test_every_split_of_the_work_gives_the_same_result(make_chain, bound, monkeypatch, case):
    backend, device = case
    if backend == "triton":
        from bitstack.kernels import triton_path

        monkeypatch.setattr(triton_path, "TILE", 16)
        monkeypatch.setattr(triton_path, "WORKSPACE", 61 * 50)
    else:
        from bitstack.kernels import torch_path, torch_sparse

        monkeypatch.setattr(torch_path, "TILE", 61 * 50)
        monkeypatch.setattr(torch_sparse, "ENTRIES", 7)
    blocks = [("sparse", 0.1), (2, True), "plane", ("sparse", 0.001), ("lowrank", 2, True)]
    _check(make_chain(131, 61, blocks, device=device), bound, backend, dtypes=[torch.float32, torch.half])
