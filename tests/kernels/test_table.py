"""Tables: what the GPU reads of a matrix, changed in place while kernels, and captured graphs, stay as they are."""

import gc
import weakref

import pytest
import torch

from bitstack.kernels import Chain, Room, Table, linear, rebuild, rows
from bitstack.kernels.reference import dense
from bitstack.kernels.table import table_of

BLOCKS = [("sparse", 0.02), (3, True), "plane", (17, False), ("sparse", 0.01), ("lowrank", 2, False)]


def _grow(chain: Chain) -> list[Chain]:
    """The chain with none of its blocks, with one, and so on."""
    return [
        Chain(chain.rows, chain.columns, chain.row_scale, chain.col_scale, chain.blocks[:n])
        for n in range(len(chain.blocks) + 1)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_grows_and_shrinks_in_place(make_chain, bound, case, dtype):
    backend, device = case
    chain = make_chain(37, 61, BLOCKS, device=device)
    states = _grow(chain)
    table = Table(states[0], Room.of([chain]))
    addresses = (table.rows_of_table.data_ptr(), table.counts.data_ptr())
    x = torch.randn(2, 61, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    ids = torch.tensor([36, 0, -1], device=device)
    for state in [*states, *reversed(states)]:
        table.update(state)
        exact = dense(state)
        for got, wanted, limit in (
            (linear(x, table, backend=backend), x.double() @ exact.T, (dtype, x)),
            (rebuild(table, dtype=dtype, backend=backend), exact, (dtype,)),
        ):
            assert ((got.double() - wanted).abs() <= bound(state, wanted, *limit)).all()
        got = rows(table, ids, dtype=dtype, backend=backend)
        assert ((got.double() - exact[ids]).abs() <= bound(state.select(ids), exact[ids], dtype)).all()
    assert addresses == (table.rows_of_table.data_ptr(), table.counts.data_ptr())


@pytest.mark.parametrize("own_columns", [False, True])
@pytest.mark.parametrize("last", [9, 20])
def test_several_chains_are_one_matrix(make_chain, bound, case, own_columns, last):
    backend, device = case
    made = [make_chain(m, 45, BLOCKS, device=device, seed=s) for s, m in enumerate((20, 20, last))]
    row_scale = torch.cat([chain.row_scale for chain in made])
    col_scale = torch.stack([chain.col_scale for chain in made]) if own_columns else made[0].col_scale
    chains = [
        Chain(c.rows, 45, c.row_scale, col_scale[i] if own_columns else col_scale, c.blocks[: 6 - i])
        for i, c in enumerate(made)
    ]
    table = Table(chains, row_scale=row_scale, col_scale=col_scale)
    assert (table.rows, table.n_chains, table.chain_rows) == (40 + last, 3, 20)
    exact = torch.cat([dense(chain) for chain in chains])
    bias = torch.randn(40 + last, generator=torch.Generator().manual_seed(1)).to(device)
    for tokens in (1, 3, 9):
        x = torch.randn(tokens, 45, generator=torch.Generator().manual_seed(2)).to(device)
        y = linear(x, table, bias=bias, backend=backend)
        wanted = x.double() @ exact.T + bias.double()
        limit = torch.cat([bound(c, w, torch.float32, x) for c, w in zip(chains, wanted.split(20, 1), strict=True)], 1)
        assert ((y.double() - wanted).abs() <= limit + 1e-6).all()
    assert torch.allclose(rebuild(table, backend=backend).double(), exact, rtol=1e-4, atol=1e-4)
    ids = torch.tensor([0, 19, 20, 39, 40, 39 + last, -1, -40 - last, 20], device=device)
    assert torch.allclose(rows(table, ids, backend=backend).double(), exact[ids], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of NumPy, where kernels are interpreted
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_shows_in_every_row(make_chain, case, bad):
    backend, device = case
    chain = make_chain(20, 40, [(3, False)], device=device)
    x = torch.ones(2, 40, device=device)
    x[0, 7] = bad
    y = linear(x, chain, backend=backend)
    assert not y[0].isfinite().any()
    assert y[1].isfinite().all()


def test_an_input_of_zeros_and_one_of_very_small_numbers(make_chain, case):
    backend, device = case
    chain = make_chain(20, 40, [(3, False)], device=device)
    assert not linear(torch.zeros(1, 40, device=device), chain, backend=backend).any()
    assert linear(torch.full((1, 40), 1e-36, device=device), chain, backend=backend).abs().max() < 1e-30


def test_ids_out_of_range_are_refused_on_the_cpu(make_chain):
    chain = make_chain(5, 8, [(1, False)])
    for ids in ([5], [-6], [0, 99]):
        with pytest.raises(IndexError, match="ids must be from -5 to 4"):
            rows(chain, torch.tensor(ids))


def test_what_a_table_refuses(make_chain):
    chain = make_chain(10, 20, [(3, False), ("sparse", 0.1)])
    with pytest.raises(ValueError, match="2 segments are more than the table holds, 1"):
        Table(chain, Room(1, 3, True))
    with pytest.raises(ValueError, match="ranks up to 16"):
        Table(make_chain(10, 20, [(17, False)]), Room(2, 16))
    with pytest.raises(ValueError, match="ranks up to 8"):
        Table(make_chain(10, 20, [(9, False)]), Room(4, 8))
    with pytest.raises(ValueError, match="without sparse blocks"):
        Table(chain, Room(4, 8, False))
    with pytest.raises(ValueError, match="needs the scales"):
        Table([chain, chain])
    with pytest.raises(ValueError, match="as many columns"):
        Table([chain, make_chain(10, 21, [])], row_scale=chain.row_scale, col_scale=chain.col_scale)
    with pytest.raises(ValueError, match="chain 0 is 11 by 20"):
        Table(chain).update(make_chain(11, 20, []))
    with pytest.raises(ValueError, match="bias must be"):
        linear(torch.ones(1, 20), chain, bias=torch.ones(9))


def test_a_chain_does_not_outlive_its_last_user_for_its_table(make_chain):
    chain = make_chain(10, 20, [(3, False)])
    assert table_of(chain) is table_of(chain)
    gone = weakref.ref(chain)
    del chain
    gc.collect()
    assert gone() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_graph_sees_what_the_table_holds_by_then(make_chain, bound):
    chain = make_chain(300, 2100, BLOCKS, device="cuda")
    states = _grow(chain)
    table = Table(states[3], Room.of([chain]))
    x = torch.randn(1, 2100, device="cuda").bfloat16()
    out = torch.empty(1, 300, device="cuda", dtype=torch.bfloat16)
    linear(x, table, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x, table, out=out)
    for state in [*states, *reversed(states)]:
        table.update(state)
        out.fill_(float("nan"))
        graph.replay()
        exact = x.double() @ dense(state).T
        assert ((out.double() - exact).abs() <= bound(state, exact, torch.bfloat16, x)).all()
        assert torch.equal(out, linear(x, table))
