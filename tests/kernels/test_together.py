"""Several matrices by the same x in one launch: bit for bit what a launch for each gives."""

from itertools import pairwise

import pytest
import torch

from bitstack.kernels import Room, Table, Together, hopper, linear, linear_together
from tests.kernels.conftest import HOPPER, marked

#: Of three matrices; more than are kept in shared memory; one that is empty, and one of single entries.
BLOCKS = {
    "usual": (
        [(8, True), "plane", "plane", ("sparse", 0.02)],
        [(3, False), "plane"],
        [(5, True), (8, True), (2, False)],
    ),
    "many": ([(2, True)] * 13, [(3, True)] * 12, [(1, False), *["plane"] * 8]),
    "nothing": ([], [("sparse", 0.1)], [("lowrank", 3, False)]),
    "all empty": ([], [], []),
}
ROWS = (200, 64, 77)


def _products(x, tables, biases):
    """Of each alone."""
    outs = [torch.full((len(x), table.rows), float("nan"), dtype=x.dtype, device=x.device) for table in tables]
    for table, bias, out in zip(tables, biases, outs, strict=True):
        hopper.multiply_few(x, table, bias, out)
    return outs


def _together(x, together, biases):
    outs = [torch.full((len(x), table.rows), float("nan"), dtype=x.dtype, device=x.device) for table in together.tables]
    hopper.multiply_together(x, together, biases, outs)
    return outs


def _same(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_as_each_alone(make_chain, bits_device, blocks, dtype):
    n, device = (4224 if bits_device == "cuda" else 256), bits_device
    tables = [
        Table(make_chain(rows, n, own, device=device, seed=seed, garbage=True))
        for seed, (rows, own) in enumerate(zip(ROWS, blocks, strict=True))
    ]
    g = torch.Generator().manual_seed(1)
    biases = [torch.randn(200, generator=g).to(device), None, torch.randn(77, generator=g).to(device, dtype)]
    for count in (2, 3):
        together = Together(tables[-count:])
        for tokens in (1, 2, 3, 4) if device == "cuda" else (1, 7):  # launches for 4, 2 and 1
            x = torch.randn(tokens, n, generator=g).to(device, dtype)
            alone = _products(x, tables[-count:], biases[-count:])
            assert all(y.isfinite().all() for y in alone)
            assert _same(_together(x, together, biases[-count:]), alone)


def test_wide_factors_and_four_matrices(make_chain, bits_device):
    n, device = (2304 if bits_device == "cuda" else 384), bits_device
    tables = [Table(make_chain(70, n, [(17, True), "plane"], device=device, seed=seed)) for seed in range(4)]
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    assert _same(_together(x, Together(tables), [None] * 4), _products(x, tables, [None] * 4))


def test_what_is_resident_may_change(make_chain, bits_device):
    n, device = 256, bits_device
    full = [make_chain(rows, n, [(4, True), "plane", ("sparse", 0.05)], device=device, seed=rows) for rows in ROWS[:2]]
    states = [[type(c)(c.rows, c.columns, c.row_scale, c.col_scale, c.blocks[:k]) for k in range(4)] for c in full]
    tables = [Table(own[1], Room.of([own[3]])) for own in states]
    together = Together(tables)
    x = torch.randn(1, n, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    seen = []
    for first, second in ((1, 1), (3, 1), (3, 2), (0, 3), (0, 0)):
        for table, own, size in zip(tables, states, (first, second), strict=True):
            table.update(own[size])
        ys = _together(x, together, [None, None])
        assert _same(ys, _products(x, [Table(states[0][first]), Table(states[1][second])], [None, None]))
        seen.append(torch.cat(ys, 1))
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


def test_what_no_launch_takes(make_chain, bits_device):
    one, other = (Table(make_chain(64, 256, [(3, True)], device=bits_device, seed=seed)) for seed in range(2))
    assert Together.possible([one, other])
    wider = Table(make_chain(64, 384, [(3, True)], device=bits_device))
    ranks = Table(make_chain(64, 256, [(9, True)], device=bits_device))
    narrow = Table(make_chain(64, 100, [(3, True)], device=bits_device))
    scales = Table(make_chain(64, 256, [(3, True)], device=bits_device, scales=torch.float16))
    chain = make_chain(64, 256, [(3, True)], device=bits_device)
    several = Table([chain, chain], row_scale=chain.row_scale.repeat(2), col_scale=chain.col_scale)
    for tables in ([one], [one, wider], [one, ranks], [narrow, narrow], [one, scales], [one, several], [one] * 5):
        assert not Together.possible(tables)
        with pytest.raises(ValueError, match="no kernels that multiply such matrices"):
            Together(tables)


@marked(HOPPER)
def test_through_the_public_operation(make_chain):
    device = torch.device("cuda")
    tables = [Table(make_chain(rows, 1024, BLOCKS["usual"][0], device="cuda", seed=rows)) for rows in ROWS]
    together, bias = Together(tables), torch.randn(64, device=device)
    x = torch.randn(2, 1, 1024, device=device).bfloat16()
    got = linear_together(x, together, biases=[None, bias, None])
    wanted = [linear(x, table, bias=b) for table, b in zip(tables, (None, bias, None), strict=True)]
    assert got is not None
    assert [y.shape for y in got] == [(2, 1, rows) for rows in ROWS]
    assert _same(got, wanted)
    assert linear_together(x, together, backend="triton") is None
    assert linear_together(x.float(), together) is None
    assert linear_together(x.expand(2, 5, 1024), together) is None
    with pytest.raises(ValueError, match="x must be"):
        linear_together(x[..., :-1], together)
    with pytest.raises(ValueError, match="bias must be"):
        linear_together(x, together, biases=[bias, bias, None])
    with pytest.raises(ValueError, match="3 biases"):
        linear_together(x, together, biases=[None])


@marked(HOPPER)
def test_a_graph_sees_what_the_tables_hold_by_then(make_chain):
    full = [make_chain(rows, 4096, [(8, True), "plane", ("sparse", 0.01)], device="cuda", seed=rows) for rows in ROWS]
    small = [type(c)(c.rows, c.columns, c.row_scale, c.col_scale, c.blocks[:1]) for c in full]
    tables = [Table(a, Room.of([b])) for a, b in zip(small, full, strict=True)]
    together = Together(tables)
    x = torch.randn(1, 4096, device="cuda").bfloat16()
    outs = [torch.empty(1, rows, dtype=x.dtype, device="cuda") for rows in ROWS]
    hopper.multiply_together(x, together, [None] * 3, outs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hopper.multiply_together(x, together, [None] * 3, outs)
    for chains in (full, small, full):
        for table, chain in zip(tables, chains, strict=True):
            table.update(chain)
        torch.cuda.synchronize()
        graph.replay()
        assert _same(outs, [linear(x, table) for table in tables])
