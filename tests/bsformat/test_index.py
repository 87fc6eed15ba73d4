"""The index section: any sound one survives, one of 300,000 blocks is served, and lying about sizes costs nothing."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsformat
from bsformat import codec, metadata, superblock
from bsformat import index as index_section
from bsformat.errors import FormatError
from bsformat.index import COLUMNS, ROW_BYTES, Index
from bsformat.metadata import Form, Metadata, Tensor, number_chains
from bsformat.payload import length
from tests.bsformat import encoder

quick = settings(deadline=None, derandomize=True, max_examples=60)

FORMS = (
    Form("raw"),
    Form("sign", "none", 1, "F16"),
    Form("sign", "none", 3, "F8_E4M3"),
    Form("lowrank", "none", 2, "F16"),
    Form("sparse"),
    Form("plane"),
)


def test_the_columns_are_those_of_the_second_implementation() -> None:
    assert [name for name, _ in COLUMNS] == list(encoder.COLUMNS)
    assert ROW_BYTES == 72 - 4 == sum({"Q": 8, "32s": 32, "f": 4, "I": 4, "H": 2}[c] for c in encoder.COLUMNS.values())


@st.composite
def sound(draw: st.DrawFn) -> tuple[Metadata, Index, int]:
    """Metadata, an index that goes with it with offsets from the first block, and the bytes of all blocks."""
    tensors: list[Tensor] = []
    for i in range(draw(st.integers(1, 4))):
        rows, columns, group = (draw(st.integers(1, 20)) for _ in range(3))
        n = len(tensors)
        tensors += [
            Tensor(f"{i}.r", (rows,), "F32"),
            Tensor(f"{i}.c", (columns,), "F16"),
            Tensor(f"{i}.w", (rows, columns), "F16", min(group, rows), n, n + 1),
        ]
    meta = Metadata("tests", number_chains(tensors), FORMS)
    rows_of = []
    left: list[tuple[Tensor, int, int]] = []
    for t in meta.tensors:
        if not t.packed:
            rows_of.append((t.first_chain, 0, 0, t.dense_bytes))
            continue
        for k in range(t.n_chains):
            size = min(t.group_rows, t.rows - k * t.group_rows)
            left += [(t, t.first_chain + k, size)] * draw(st.integers(0, 3))
    n_raw = len(rows_of)
    level: dict[int, int] = {}
    last: dict[int, int] = {}
    for t, chain, size in draw(st.permutations(left)):
        form = draw(st.integers(1, 5 if last.get(chain) in (1, 2, 5) else 4))
        rows_of.append((chain, level.get(chain, 0), form, length(FORMS[form], t, size, draw(st.integers(0, 200)))))
        level[chain], last[chain] = level.get(chain, 0) + 1, form
    chain, levels, form, lengths = (np.array(column) for column in zip(*rows_of, strict=True))
    ends, offsets, at = [], [], 0
    for size in lengths.tolist():
        offsets.append(at)
        ends.append(at + size)
        at = encoder.align(at + size)
    count = len(rows_of)
    draws = np.random.default_rng(count)
    index = Index(
        draw(st.integers(n_raw, count)),
        np.array(offsets, "<u8"),
        lengths.astype("<u8"),
        lengths.astype("<u8"),
        np.frombuffer(draws.bytes(32 * count), "V32"),
        draws.random(count, np.float32),
        chain.astype("<u4"),
        levels.astype("<u2"),
        form.astype("<u2"),
    )
    return meta, index, ends[-1]


@quick
@given(sound(), st.integers(0, 1 << 40).map(lambda n: 64 * n))
def test_what_is_encoded_is_decoded(case: tuple[Metadata, Index, int], start: int) -> None:
    meta, index, size = case
    data = index_section.encode(index)
    assert len(data) == 16 + len(index) * ROW_BYTES
    decoded = index_section.decode(data, meta, start, start + size, "here")
    assert decoded.required == index.required
    assert decoded.offset.tolist() == [start + offset for offset in index.offset.tolist()]
    for name, _ in COLUMNS[1:]:
        assert getattr(decoded, name).tobytes() == getattr(index, name).tobytes()


@quick
@given(sound(), st.data())
def test_a_changed_byte_is_decoded_or_refused(case: tuple[Metadata, Index, int], data: st.DataObject) -> None:
    """Nothing but a FormatError comes out; a value that decides where bytes lie or what they mean is always refused."""
    meta, index, size = case
    encoded = bytearray(index_section.encode(index))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    column, begin = "header", 16
    for name, kind in COLUMNS:
        if at >= begin:
            column = name
        begin += np.dtype(kind).itemsize * len(index)
    try:
        index_section.decode(bytes(encoded), meta, 128, 128 + size, "here")
    except FormatError as error:
        assert error.reason.startswith("index-")  # noqa: PT017
    else:
        assert column in {"header", "digest", "worth", "chain", "form"}
    with pytest.raises(FormatError) as caught:
        index_section.decode(bytes(encoded[:at]), meta, 128, 128 + size, "here")
    assert caught.value.reason == "index-length"


# --- a large mixture of experts -------------------------------------------------------------------------------------

EXPERTS, LEVELS = 30_000, 8


def large() -> tuple[bytes, int]:
    """The head of a file of 30,000 matrices, each with two scales and 8 levels, and its length when decoded."""
    rows, columns = 64, 64
    tensors = []
    for i in range(EXPERTS):
        name = f"model.layers.{i // 768}.mlp.experts.{i // 3 % 256}.{('gate', 'up', 'down')[i % 3]}_proj"
        tensors += [
            Tensor(f"{name}.row_scale", (rows,), "F32"),
            Tensor(f"{name}.col_scale", (columns,), "F32"),
            Tensor(f"{name}.weight", (rows, columns), "BF16", rows, 3 * i, 3 * i + 1),
        ]
    meta = Metadata("tests", number_chains(tensors), FORMS)
    size = length(FORMS[1], tensors[2], rows)
    raw, count = 2 * EXPERTS, EXPERTS * LEVELS
    number = np.arange(3 * EXPERTS)
    chain = np.concatenate([number[number % 3 < 2], np.tile(number[number % 3 == 2], LEVELS)])
    level = np.concatenate([np.zeros(raw, int), np.repeat(np.arange(LEVELS), EXPERTS)])
    sizes = np.concatenate([np.full(raw, 256), np.full(count, size)])
    offset = np.concatenate([[0], np.cumsum((sizes + 63) // 64 * 64)[:-1]])
    index = Index(
        raw,
        offset.astype("<u8"),
        sizes.astype("<u8"),
        sizes.astype("<u8"),
        np.frombuffer(np.random.default_rng(0).bytes(32 * (raw + count)), "V32"),
        np.concatenate([np.zeros(raw), np.linspace(2, 1, count)]).astype("<f4"),
        chain.astype("<u4"),
        level.astype("<u2"),
        (np.arange(raw + count) >= raw).astype("<u2"),
    )
    raw = metadata.encode(meta), index_section.encode(index)
    stored = codec.compress(raw[0]), codec.compress(raw[1])
    head = superblock.Superblock(len(stored[0]), len(raw[0]), len(stored[1]), len(raw[1]), 0, 0, 0, bytes(32))
    total = head.blocks_offset + int(offset[-1]) + size
    fields = (len(stored[0]), len(raw[0]), len(stored[1]), len(raw[1]), 0, total, total)
    head = superblock.Superblock(*fields, bytes(32))
    root = superblock.compute_root(head.identity(), *stored)
    return superblock.Superblock(*fields, root).encode() + stored[0] + stored[1], len(raw[0]) + len(raw[1])


class Head(bsformat.MemorySource):
    """A file of which only the head is there."""

    def start(self, length: int) -> tuple[bytes | bytearray | memoryview, int]:
        data, _ = super().start(length)
        return data, int.from_bytes(self._data[72:80], "little")


def test_300_000_blocks() -> None:
    """Peak memory while opening stays within a small multiple of the decoded head."""
    data, decoded = large()
    began = time.perf_counter()
    container = bsformat.open(Head(data))
    opened = time.perf_counter() - began
    assert len(container) == 300_000
    assert container.superblock.index_length == 16 + 300_000 * ROW_BYTES
    sizes = container.index.length.astype(int)
    assert container.total_bytes == sizes.sum()
    for n in (60_000, 60_001, 100_000, 299_999, 300_000):
        budget = int(sizes[:n].sum())
        began = time.perf_counter()
        plan = container.plan(budget)
        planned = time.perf_counter() - began
        assert plan.n_blocks == n
        assert container.plan(budget + 1).n_blocks == n
        if n > 60_000:
            assert container.plan(budget - 1).n_blocks == n - 1
    block = container.block(299_999)
    assert (block.level, block.tensor.name) == (LEVELS - 1, "model.layers.39.mlp.experts.15.down_proj.weight")
    spans = list(container.spans(0, len(container), 64 << 20))
    assert sum(s.length for s in spans) == container.size - container.superblock.blocks_offset
    print(f"\n300,000 blocks: opened in {opened:.2f} s, planned in {1e6 * planned:.0f} us")

    tracemalloc.start()
    bsformat.open(Head(data)).plan("50%")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak / 1e6:.0f} MB for {decoded / 1e6:.0f} MB of decoded head")
    assert peak < 6 * decoded


def test_many_chains_cost_nothing_before_their_blocks_are_seen(image: encoder.Image) -> None:
    """A small file that declares millions of chains."""
    image.meta["tensors"][2]["shape"] = [1 << 22]
    image.meta["tensors"][4] |= {"shape": [1 << 22, encoder.N], "group_rows": 1, "row_scale": 2}
    image.meta["tensors"] = [image.meta["tensors"][i] for i in (2, 3, 4)]
    image.meta["tensors"][0]["shape"] = [(1 << 22) - 2]
    image.meta["tensors"][2] |= {"shape": [(1 << 22) - 2, encoder.N], "row_scale": 0, "col_scale": 1}
    image.blocks = [encoder.Block(bytes(4), 0, 0, 0), encoder.Block(bytes(20), 1, 0, 0)]
    image.required = 2
    data = image.seal()
    assert len(data) < 2000
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            bsformat.open(bsformat.MemorySource(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "index-block-length"
    assert peak < 1 << 20
