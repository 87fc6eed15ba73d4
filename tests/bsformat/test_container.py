"""An open file: how it is read, planned and cut into spans."""

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import bsformat
from bsformat.errors import BudgetError, FormatError, IntegrityError, NotFoundError
from bsformat.head import FIRST_READ
from bsformat.laying import INLINE_LIMIT
from tests.bsformat import encoder
from tests.bsformat.conftest import ORDER, RAW_FORM, VOCABULARY, first_problem, small_blocks, small_tensors
from tests.bsformat.encoder import Image


class Counting(bsformat.MemorySource):
    """A source that notes its reads as (offset, length); the first read is `start`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def start(self, length: int) -> tuple[bytes | bytearray | memoryview, int]:
        data, size = super().start(length)
        self.reads.append((0, len(data)))
        return data, size

    def get(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        self.reads.append((offset, length))
        return super().get(offset, length)


# --- round trip -----------------------------------------------------------------------------------------------------


def test_round_trip(small: Path) -> None:
    with bsformat.open(small) as container:
        assert [t.name for t in container.tensors] == ["norm.weight", "mask", "w.rows", "w.columns", "w.weight"]
        assert [(t.shape, t.dtype, t.group_rows, t.row_scale, t.col_scale) for t in container.tensors] == [
            (t.shape, t.dtype, t.group_rows, t.row_scale, t.col_scale) for t in small_tensors()
        ]
        assert sorted(container.model_tensors) == ["mask", "norm.weight", "w.weight"]
        assert container.metadata.aliases == {"head.weight": "w.weight"}
        assert container.metadata.extra == {"recipe": {"rank": [2, 1]}}
        payloads = {(c, form.kind, form.rank, data) for c, form, data in small_blocks()}
        read = [(container.block(i), container.read_block(i)) for i in range(len(container))]
    chains = {("w.weight", 0): 4, ("w.weight", 2): 5, ("w.weight", 4): 6}
    raw = {"norm.weight": 0, "mask": 1, "w.rows": 2, "w.columns": 3}
    assert len(read) == 9
    assert {
        (chains.get((b.tensor.name, b.first_row), raw.get(b.tensor.name)), b.form.kind, b.form.rank, data)
        for b, data in read
    } == payloads
    assert [(b.first_row, b.rows, b.level, b.worth) for b, _ in read[4:]] == [
        (4, 1, 0, 5.0),
        (0, 2, 0, 4.0),
        (0, 2, 1, 3.0),
        (4, 1, 1, 2.0),
        (2, 2, 0, 0.5),
    ]
    assert [b.worth for b, _ in read[:4]] == [0.0] * 4


def test_opens_what_a_second_implementation_wrote(image: Image, sealed: bytes) -> None:
    with bsformat.open(bsformat.MemorySource(sealed), root=sealed[96:128].hex()) as container:
        assert [container.read_block(i) for i in (0, 2, 3, 4, 5)] == [image.blocks[i].data for i in (0, 2, 3, 4, 5)]
        assert container.read_block(1) == encoder.unzstd(image.blocks[1].data)
        assert container.attachment("config.json") == b"{}"
        assert container.attachment("tokenizer/vocab.json") == encoder.VOCABULARY
        assert container.metadata.curves[0].points == ((4, 1e9), (6, 26.5))
        assert container.metadata.curves[0].dense == 25.0
        assert container.metadata.extra == {"recipe": {"rank": [1, 2]}, "note": None}


@pytest.mark.parametrize("root", [None, "right"])
def test_root(small: Path, root: str | None) -> None:
    expected = small.read_bytes()[96:128].hex()
    with bsformat.open(small, root=root and expected) as container:
        assert container.root == expected
        assert container.version == "1.0"
        assert container.uri == str(small)


@pytest.mark.parametrize("shape", [(3, 7, 10), (2, 2, 3, 5), (1, 9)])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_more_dimensions_and_row_groups(tmp_path: Path, shape: tuple[int, ...], group: int) -> None:
    """A stack of experts, say: the matrix has the product of the leading dimensions as rows."""
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    group = min(group, rows)
    n_chains = -(-rows // group)
    tensors = [
        bsformat.Tensor("r", (rows,), "F32"),
        bsformat.Tensor("c", (n_chains, columns), "F16"),
        bsformat.Tensor("w", shape, "BF16", group_rows=group, row_scale=0, col_scale=1),
    ]
    form = bsformat.Form("sign", rank=1, factors="F16")
    with bsformat.Writer(tmp_path / "a", tensors) as writer:
        writer.put(0, RAW_FORM, np.ones(rows, "<f4").tobytes())
        writer.put(1, RAW_FORM, np.ones((n_chains, columns), "<f2").tobytes())
        for i in range(n_chains):
            size = min(group, rows - i * group)
            writer.put(2 + i, form, bytes(size * -(-columns // 8) + 2 * (size + columns)))
        writer.finish([(2 + i, 1.0) for i in range(n_chains)])
    with bsformat.open(tmp_path / "a") as container:
        tensor = container.model_tensors["w"]
        assert (tensor.rows, tensor.columns, tensor.n_chains) == (rows, columns, n_chains)
        blocks = [container.block(i) for i in range(2, len(container))]
        # The row groups tile the rows; the last one may be shorter.
        assert [b.first_row for b in blocks] == list(range(0, rows, group))
        assert [b.first_row + b.rows for b in blocks] == [*range(group, rows, group), rows]
        assert bsformat.verify(container).ok


@pytest.mark.parametrize("shape", [(3, 10), (3, 1, 10), (1, 3, 10)])
@pytest.mark.parametrize("scales", [(10,), (1, 10)])
def test_transposed(image: Image, scales: tuple[int, ...], shape: tuple[int, ...]) -> None:
    image.meta["tensors"][4].update(transposed=True, shape=list(shape))
    image.meta["tensors"][3]["shape"] = list(scales)
    with bsformat.open(bsformat.MemorySource(image.seal())) as container:
        tensor = container.model_tensors["w.weight"]
        assert tensor.transposed
        assert (tensor.shape, tensor.rows, tensor.columns) == (shape, 3, 10)


def test_a_scalar(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a", [bsformat.Tensor("x", (), "F64")]) as writer:
        writer.put(0, RAW_FORM, bytes(8))
        writer.finish([])
    with bsformat.open(tmp_path / "a") as container:
        tensor = container.tensors[0]
        assert (tensor.rows, tensor.columns, tensor.n_chains, tensor.dense_bytes) == (1, 1, 1, 8)
        assert bsformat.verify(container).ok


def test_a_chain_may_have_no_blocks(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()) as writer:
        for block in small_blocks():
            if block[0] != 5:
                writer.put(*block)
        writer.finish(ORDER[:-1])
    assert first_problem((tmp_path / "a").read_bytes()) is None


def test_chains(small: Path) -> None:
    with bsformat.open(small) as container:
        parts = container.chains
    assert parts.tensor.tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert parts.first_row.tolist() == [0, 0, 0, 0, 0, 2, 4]
    assert parts.rows.tolist() == [1, 64, 1, 3, 2, 2, 1]
    assert parts.columns.tolist() == [4, 64, 5, 10, 10, 10, 10]
    assert parts.raw_bytes.tolist() == [16, 4096, 20, 60, 0, 0, 0]


# --- attachments ----------------------------------------------------------------------------------------------------


def test_attachments(tmp_path: Path) -> None:
    files = {"z.json": b"{}", "a/noise": np.random.default_rng(0).bytes(40_000), "a/text": VOCABULARY}
    with bsformat.Writer(tmp_path / "a", small_tensors()[:1]) as writer:
        writer.put(*small_blocks()[0])
        for name, data in files.items():
            writer.attach(name, data)
        writer.finish([])
    source = Counting((tmp_path / "a").read_bytes())
    with bsformat.open(source) as container:
        records = {a.name: a for a in container.metadata.attachments}
        assert list(records) == ["a/noise", "a/text", "z.json"]
        assert source.reads == [(0, FIRST_READ)]
        source.reads.clear()
        # The small one lies in the head, the others are read when they are asked for, and nothing else with them.
        assert container.attachment("z.json") == b"{}"
        assert source.reads == []
        noise, text = records["a/noise"], records["a/text"]
        head = container.superblock.head_length
        assert (noise.data, noise.codec, noise.offset, noise.stored, noise.length) == (None, "none", 0, 40_000, 40_000)
        assert (text.data, text.codec, text.offset, text.length) == (None, "zstd", 40_000, len(VOCABULARY))
        assert container.attachment("a/text") == VOCABULARY
        assert source.reads == [(head + 40_000, text.stored)]
        source.reads.clear()
        assert container.attachment("a/noise") == files["a/noise"]
        assert source.reads == [(FIRST_READ, head + 40_000 - FIRST_READ)]


@pytest.mark.parametrize(("size", "inline"), [(0, True), (INLINE_LIMIT, True), (INLINE_LIMIT + 1, False)])
def test_where_attachments_go(tmp_path: Path, size: int, inline: bool) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()[:1]) as writer:
        writer.put(*small_blocks()[0])
        writer.attach("a", bytes(size))
        writer.finish([])
    with bsformat.open(tmp_path / "a") as container:
        assert (container.metadata.attachments[0].data is not None) is inline
        assert container.attachment("a") == bytes(size)


def test_an_unknown_attachment(small: Path) -> None:
    with bsformat.open(small) as container, pytest.raises(NotFoundError) as caught:
        container.attachment("tokenizer.json")
    assert caught.value.reason == "attachment-unknown"
    assert "config.json, tokenizer/vocab.json" in str(caught.value)


def test_many_attachments_are_not_looked_through_for_each_of_them(image: Image) -> None:
    """Verifying a file of 130 KB with a million of them would take hours."""
    extra = [{"name": f"{i}", "length": 1, "data": b"x"} for i in range(300)]
    image.meta["attachments"] += extra
    walks = 0

    class Walked(tuple[bsformat.Attachment, ...]):
        def __iter__(self) -> Iterator[bsformat.Attachment]:
            nonlocal walks
            walks += 1
            return super().__iter__()

    with bsformat.open(bsformat.MemorySource(image.seal())) as container:
        container.metadata = replace(container.metadata, attachments=Walked(container.metadata.attachments))
        assert bsformat.verify(container).ok
        assert container.attachment("299") == b"x"
    assert walks <= 2


def test_no_attachments(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()[:1]) as writer:
        writer.put(*small_blocks()[0])
        writer.finish([])
    with bsformat.open(tmp_path / "a") as container, pytest.raises(NotFoundError, match="there are: none"):
        container.attachment("a")


def test_an_attachment_that_is_damaged(image: Image) -> None:
    image.meta["attachments"][1]["digest"] = bytes(32)
    with bsformat.open(bsformat.MemorySource(image.seal())) as container:
        with pytest.raises(IntegrityError) as caught:
            container.attachment("tokenizer/vocab.json")
        assert caught.value.reason == "attachment-digest"
        assert caught.value.offset == container.superblock.head_length


# --- reads ----------------------------------------------------------------------------------------------------------


def wide(n_attached: int, blocks_of: int) -> bytes:
    """A file with a head of about 40 bytes an attachment, and two raw blocks of so many bytes that do not compress."""
    draw = np.random.default_rng(0)
    data = [draw.bytes(blocks_of) for _ in range(2)]
    meta = encoder.sample().meta | {
        "tensors": [{"name": name, "shape": [blocks_of], "dtype": "U8"} for name in "ab"],
        "aliases": {},
        "curves": [],
        "attachments": [{"name": draw.bytes(20).hex(), "length": 0, "data": b""} for _ in range(n_attached)],
    }
    return Image(meta, [encoder.Block(d, i, 0, 0) for i, d in enumerate(data)], required=2).seal()


def test_a_small_file_is_one_read(sealed: bytes) -> None:
    source = Counting(sealed)
    with bsformat.open(source) as container:
        for i in range(len(container)):
            container.read_block(i)
        for a in container.metadata.attachments:
            container.attachment(a.name)
        assert bsformat.verify(container).ok
    assert source.reads == [(0, len(sealed))]


def test_a_small_head_is_one_read_and_what_it_brought_is_not_read_again() -> None:
    data = wide(0, 20_000)
    source = Counting(data)
    with bsformat.open(source) as container:
        assert container.superblock.head_length < FIRST_READ < len(data)
        assert source.reads == [(0, FIRST_READ)]
        second = container.block(1)
        assert bsformat.verify(container).ok
        verified = source.reads[1:]
        assert verified == [(FIRST_READ, len(data) - FIRST_READ)]
        source.reads.clear()
        container.read_block(0)
        container.read_block(1)
    first = container.block(0)
    assert source.reads == [(FIRST_READ, first.offset + 20_000 - FIRST_READ), (second.offset, 20_000)]


def test_a_large_head_is_two_reads() -> None:
    data = wide(1500, 100)
    source = Counting(data)
    with bsformat.open(source) as container:
        head = container.superblock.head_length
        assert head > FIRST_READ
        assert source.reads == [(0, FIRST_READ), (FIRST_READ, head - FIRST_READ)]
        assert len(container.metadata.attachments) == 1500
        assert bsformat.verify(container).ok


@pytest.mark.parametrize("size", [FIRST_READ - 1, FIRST_READ, FIRST_READ + 1])
def test_a_file_of_about_the_first_read(size: int) -> None:
    image = encoder.parse(wide(0, 4096))
    for _ in range(3):  # the length of the head depends a little on the numbers in it
        size_now = len(image.seal())
        length = len(image.blocks[1].data) + size - size_now
        image.blocks = [encoder.Block(np.random.default_rng(i).bytes(n), i, 0, 0) for i, n in enumerate((4096, length))]
        image.meta["tensors"][1]["shape"] = [length]
    data = image.seal()
    assert len(data) == size
    source = Counting(data)
    with bsformat.open(source) as container:
        assert bsformat.verify(container).ok
    assert source.reads == [(0, min(size, FIRST_READ)), *([(FIRST_READ, 1)] if size > FIRST_READ else [])]


def test_requests_and_bytes_are_counted(small: Path) -> None:
    with bsformat.open(Counting(small.read_bytes())) as container:
        assert (container.source.requests, container.source.bytes_read) == (1, small.stat().st_size)
    with bsformat.open(Counting(wide(0, 100_000))) as container, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: container.read(50_000 + i, 10 + i % 2), range(1000)))
        assert (container.source.requests, container.source.bytes_read) == (1001, FIRST_READ + 10_500)


def test_the_source_is_closed_when_opening_fails(sealed: bytes) -> None:
    closed = []

    class Closing(bsformat.MemorySource):
        def close(self) -> None:
            closed.append(True)

    with pytest.raises(FormatError):
        bsformat.open(Closing(sealed[:-1]))
    assert closed == [True]
    with bsformat.open(Closing(sealed)) as container:
        bsformat.verify(container)  # leaves open what it was given open
        assert closed == [True]
    assert closed == [True, True]
    bsformat.verify(Closing(sealed))
    assert closed == [True, True, True]


# --- plans ----------------------------------------------------------------------------------------------------------


def lengths(container: bsformat.Container) -> list[int]:
    return [container.block(i).length for i in range(len(container))]


def test_every_budget(small: Path) -> None:
    """All of them, byte for byte, against the definition."""
    with bsformat.open(small) as container:
        sizes = lengths(container)
        sums = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        minimum, total = sums[4], sums[-1]
        assert (container.minimum_bytes, container.total_bytes) == (minimum, total)
        first = container.block(0).offset
        for budget in range(minimum, total + 2):
            n = max(i for i in range(len(sums)) if sums[i] <= budget)
            plan = container.plan(budget)
            last = container.block(n - 1)
            assert plan == bsformat.Plan(
                n_blocks=n,
                resident_bytes=sums[n],
                offset=first,
                length=last.offset + last.stored - first,
                budget=budget,
                next_bytes=sums[n + 1] if n < len(sizes) else None,
            )


@pytest.mark.parametrize(
    ("budget", "expected"),
    [("100%", 9), ("1TiB", 9), ("100.0%", 9), ("1000%", 9), ("99.99%", 8), (10**30, 9)],
)
def test_budgets_as_people_write_them(small: Path, budget: str | int, expected: int) -> None:
    with bsformat.open(small) as container:
        assert container.plan(budget).n_blocks == expected


@pytest.mark.parametrize("budget", [0, 1, "0", "0%", "1KB", "minimum - 1"])
def test_a_budget_below_the_minimum(small: Path, budget: str | int) -> None:
    with bsformat.open(small) as container:
        if budget == "minimum - 1":
            budget = container.minimum_bytes - 1
        with pytest.raises(BudgetError) as caught:
            container.plan(budget)
        assert caught.value.reason == "budget-too-small"
        assert str(caught.value).startswith(str(small))
        assert str(container.minimum_bytes) in str(caught.value)


def test_a_budget_that_is_none(small: Path) -> None:
    with bsformat.open(small) as container, pytest.raises(BudgetError) as caught:
        container.plan("plenty")
    assert caught.value.reason == "budget-invalid"
    assert str(caught.value).startswith(str(small))


def test_a_plan_as_json(small: Path) -> None:
    with bsformat.open(small) as container:
        plan = container.plan("100%").to_json()
    assert set(plan) == {"n_blocks", "resident_bytes", "offset", "length", "budget", "next_bytes"}
    assert plan["n_blocks"] == 9


def test_more_blocks_may_be_required_than_raw_ones(image: Image) -> None:
    image.required = 5
    with bsformat.open(bsformat.MemorySource(image.seal())) as container:
        sizes = lengths(container)
        assert container.minimum_bytes == sum(sizes[:5])
        assert container.plan(container.minimum_bytes).n_blocks == 5


# --- spans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64, 65, 100, 128, 500, 1000, 4096, 1 << 40, "three"])
def test_spans_tile_the_prefix(small: Path, size: int | str) -> None:
    data = small.read_bytes()
    with bsformat.open(small) as container:
        if size == "three":  # blocks fit exactly
            size = container.block(6).offset + container.block(6).stored - container.block(4).offset
            assert next(container.spans(4, 9, size)).stop == 7
        for first in range(len(container)):
            for stop in range(first, len(container) + 1):
                spans = list(container.spans(first, stop, size))
                at = container.block(first).offset
                number = first
                for span in spans:
                    assert (span.offset, span.first) == (at, number)
                    assert span.stop > span.first
                    blocks_end = container.block(span.stop - 1).offset + container.block(span.stop - 1).stored
                    assert blocks_end - span.offset <= size or span.stop == span.first + 1
                    # And as long as it may be: the next block would not fit.
                    if span.stop < stop:
                        following = container.block(span.stop)
                        assert following.offset + following.stored - span.offset > size
                    at, number = span.offset + span.length, span.stop
                assert number == stop
                if spans:
                    last = container.block(stop - 1)
                    assert at == last.offset + last.stored  # not a byte beyond the last block
        for span in container.spans(0, len(container), size):
            decoded = list(container.decode_span(span, data[span.offset : span.offset + span.length]))
            assert [b.number for b, _ in decoded] == list(range(span.first, span.stop))
            assert [bytes(p) for _, p in decoded] == [container.read_block(b.number) for b, _ in decoded]


def test_decode_span_checks_the_padding(sealed: bytes) -> None:
    with bsformat.open(bsformat.MemorySource(sealed)) as container:
        (span,) = container.spans(0, 6, 1 << 20)
        data = bytearray(sealed[span.offset :])
        data[16] = 1  # after the 16 bytes of block 0
        with pytest.raises(FormatError) as caught:
            list(container.decode_span(span, data))
    assert caught.value.reason == "padding"
    assert caught.value.offset == span.offset + 16


def test_the_plan_s_range_is_the_spans_range(small: Path) -> None:
    with bsformat.open(small) as container:
        plan = container.plan("99%")
        assert 4 < plan.n_blocks < 9
        spans = list(container.spans(0, plan.n_blocks, 300))
        assert spans[0].offset == plan.offset
        assert sum(span.length for span in spans) == plan.length


# --- prefix files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prefix(small: Path) -> Callable[[int], bytes]:
    """The file cut after so many blocks: the same root, another present length."""
    data = small.read_bytes()
    with bsformat.open(small) as container:
        ends = [container.block(i).offset + container.block(i).stored for i in range(len(container))]

    def cut(n_blocks: int) -> bytes:
        end = ends[n_blocks - 1]
        return data[:80] + end.to_bytes(8, "little") + data[88:end]

    return cut


@pytest.mark.parametrize("n_blocks", [4, 5, 8, 9])
def test_a_prefix_file(prefix: Callable[[int], bytes], small: Path, n_blocks: int) -> None:
    with bsformat.open(small) as whole:
        root, sizes, full = whole.root, lengths(whole), whole.size
    with bsformat.open(bsformat.MemorySource(prefix(n_blocks)), root=root) as container:
        assert (container.available_blocks, len(container), container.size) == (n_blocks, 9, full)
        assert container.total_bytes == sum(sizes[:n_blocks])
        plan = container.plan("1GiB")
        assert (plan.n_blocks, plan.next_bytes) == (n_blocks, None)
        report = bsformat.verify(container)
        assert report.ok
        assert (report.n_blocks, report.size) == (n_blocks, len(prefix(n_blocks)))


def test_a_prefix_file_names_what_it_lacks(prefix: Callable[[int], bytes], tmp_path: Path) -> None:
    with bsformat.open(bsformat.MemorySource(prefix(5))) as container:
        for attempt in (partial(container.read_block, 5), partial(bsformat.rewrite, container, tmp_path / "b")):
            with pytest.raises(bsformat.errors.TruncatedError, match="holds 5 of 9 blocks, not block 5"):
                attempt()
    assert not any(path.name == "b" for path in tmp_path.iterdir())


def test_a_prefix_file_without_the_required_blocks(prefix: Callable[[int], bytes]) -> None:
    error = first_problem(prefix(3))
    assert error is not None
    assert error.reason == "superblock-invalid"


# --- verify ---------------------------------------------------------------------------------------------------------


def test_verify_reports_progress(small: Path) -> None:
    seen: list[int] = []
    report = bsformat.verify(small, progress=seen.append)
    assert report.ok
    assert sum(seen) == report.size == small.stat().st_size
    assert report.root == small.read_bytes()[96:128].hex()


def test_verify_reads_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # bsformat.verify is the function; its module is not reached by attributes.
    monkeypatch.setattr(importlib.import_module("bsformat.verify"), "CHUNK", 3000)
    data = wide(0, 20_000)
    source = Counting(data)
    assert bsformat.verify(source).ok
    covered = sorted((offset, offset + length) for offset, length in source.reads)
    assert len(covered) == 2  # the first read, and the rest
    assert (covered[0][0], covered[-1][1]) == (0, len(data))
    assert all(a[1] == b[0] for a, b in pairwise(covered))
