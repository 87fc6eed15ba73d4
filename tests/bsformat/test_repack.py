"""A file made of the blocks of another: which blocks, in what order, with what head; and what it costs to read them."""

import errno
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsformat
from bsformat import BstkError, MemorySource, arrange, copying
from bsformat.errors import BudgetError, FormatError, IntegrityError, RepackError, WriteError
from tests.bsformat.conftest import VOCABULARY
from tests.bsformat.encoder import Image, parse
from tests.servers import Scripted

LOSSES = {"w.weight": [[9.0, 8.0, 2.0], [5.0, 1.0], [4.0, 3.5, 3.0]]}


def payloads(path: Path) -> dict[tuple[int, int], bytes]:
    """The payload of every block, by chain and level; the file is checked."""
    assert bsformat.verify(path).problems == []
    with bsformat.open(path) as file:
        keys = zip(file.index.chain.tolist(), file.index.level.tolist(), strict=True)
        return {key: file.read_block(i) for i, key in enumerate(keys)}


def order_of(path: Path) -> list[tuple[int, int, float]]:
    """(chain, level, worth) of every block that is not required."""
    with bsformat.open(path) as file:
        ix = file.index
        return list(zip(ix.chain.tolist(), ix.level.tolist(), ix.worth.tolist(), strict=True))[ix.required :]


def with_curve(path: Path, points: tuple[tuple[int, float], ...]) -> Path:
    out = path.with_name("curved.bstk")
    with bsformat.open(path) as file:
        bsformat.rewrite(file, out, curves=[bsformat.Curve("perplexity", "t", 64, 32, 9.0, points)])
    return out


def test_as_it_is(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bstk"
    made = bsformat.repack(small, out)
    assert payloads(out) == payloads(small)
    assert order_of(out) == order_of(small)
    assert sorted(os.listdir(tmp_path)) == ["out.bstk", "small.bstk"]
    with bsformat.open(small) as old, bsformat.open(out, root=made.root) as new:
        assert made.source_root == old.root != new.root
        assert (made.n_blocks, made.source_blocks, made.size) == (9, 9, out.stat().st_size)
        assert made.total_bytes == new.total_bytes == old.total_bytes
        assert new.index.digest.tobytes() == old.index.digest.tobytes()
        assert new.attachment("tokenizer/vocab.json") == VOCABULARY
        assert (new.tensors, new.metadata.aliases) == (old.tensors, old.metadata.aliases)


def test_what_it_was_made_of(small: Path, tmp_path: Path) -> None:
    first = bsformat.repack(small, tmp_path / "a", order="average", levels=1)
    second = bsformat.repack(tmp_path / "a", tmp_path / "b", budget="100%")
    with bsformat.open(tmp_path / "b") as file:
        extra = dict(file.metadata.extra)
        assert file.metadata.writer == bsformat.writer.WRITER
    assert extra.pop("recipe") == {"rank": [2, 1]}
    steps = extra.pop("bstk.history")
    assert extra == {}
    assert [step["root"] for step in steps] == [first.source_root, second.source_root]
    assert second.source_root == first.root
    assert steps[0]["options"] == {"order": "average", "levels": 1, "codec": "keep"}
    assert steps[1]["options"] == {"order": "file", "budget": "100%", "codec": "keep"}
    assert [(step["operation"], step["blocks"]) for step in steps] == [("repack", 9), ("repack", 7)]


def test_what_a_newer_version_said_of_the_blocks_is_dropped(image: Image, tmp_path: Path) -> None:
    image.superblock |= {"may": 1 << 40, "minor": 7}
    image.meta["extra"] = {"bstk.hints": [1, 2], "mine": 3, "bstk.history": "no list"}
    made = bsformat.repack(MemorySource(image.seal()), tmp_path / "out")
    with bsformat.open(tmp_path / "out", root=made.root) as file:
        assert (file.superblock.may, file.superblock.minor) == (0, 0)
        assert set(file.metadata.extra) == {"mine", "bstk.history"}
        assert len(file.metadata.extra["bstk.history"]) == 1


def test_level_by_level_and_back(small: Path, tmp_path: Path) -> None:
    bsformat.repack(small, tmp_path / "a", order="average")
    assert order_of(tmp_path / "a") == [(6, 0, 5.0), (4, 0, 4.0), (5, 0, 0.5), (4, 1, 3.0), (6, 1, 2.0)]
    bsformat.repack(tmp_path / "a", tmp_path / "b", order="worth")
    assert order_of(tmp_path / "b") == order_of(small)
    assert payloads(tmp_path / "b") == payloads(tmp_path / "a") == payloads(small)


def test_by_other_losses(small: Path, tmp_path: Path) -> None:
    bsformat.repack(small, tmp_path / "a", losses=LOSSES)
    with bsformat.open(small) as file:
        size = dict(
            zip(
                zip(file.index.chain.tolist(), file.index.level.tolist(), strict=True),
                file.index.length.tolist(),
                strict=True,
            )
        )
    order = order_of(tmp_path / "a")
    # In chains 4 and 6 level 1 is worth more than level 0, so both form a group.
    both = np.float32(7.0 / (size[4, 0] + size[4, 1]))
    expected = {(4, 0): both, (4, 1): both, (5, 0): np.float32(4 / size[5, 0])}
    expected |= {(6, level): np.float32(1.0 / (size[6, 0] + size[6, 1])) for level in (0, 1)}
    assert {(chain, level): worth for chain, level, worth in order} == expected
    assert [worth for *_, worth in order] == sorted((worth for *_, worth in order), reverse=True)
    with bsformat.open(tmp_path / "a") as file:
        assert file.metadata.extra["bstk.history"][0]["options"] == {"order": "worth", "losses": True, "codec": "keep"}


@pytest.mark.parametrize(
    "losses",
    [
        {},
        LOSSES | {"norm.weight": [[1.0, 0.0]]},
        LOSSES | {"none": []},
        {"w.weight": [[9.0, 8.0, 2.0], [5.0, 1.0]]},
        {"w.weight": [[9.0, 8.0], [5.0, 1.0], [4.0, 3.5, 3.0]]},
        {"w.weight": [[9.0, 8.0, float("nan")], [5.0, 1.0], [4.0, 3.5, 3.0]]},
        {"w.weight": [[9.0, 8.0, 1e31], [5.0, 1.0], [4.0, 3.5, 3.0]]},
        {"w.weight": [[9.0, 8.0, True], [5.0, 1.0], [4.0, 3.5, 3.0]]},
        {"w.weight": [[9.0, 8.0, "1"], [5.0, 1.0], [4.0, 3.5, 3.0]]},
        {"w.weight": [9.0, 8.0, 2.0]},
        {"w.weight": 3},
        {"w.weight": "abc"},
    ],
)
def test_losses_that_do_not_fit(small: Path, tmp_path: Path, losses: Mapping[str, Any]) -> None:
    with pytest.raises(RepackError) as caught:
        bsformat.repack(small, tmp_path / "a", losses=losses)
    assert caught.value.reason == "repack-invalid"
    assert os.listdir(tmp_path) == ["small.bstk"]


@pytest.mark.parametrize(
    "options", [{"order": "best"}, {"codec": "lz4"}, {"levels": -1}, {"order": "file", "losses": LOSSES}]
)
def test_options_that_are_none(small: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RepackError, match=r"small\.bstk: "):
        bsformat.repack(small, tmp_path / "a", **options)


@pytest.mark.parametrize(("levels", "left"), [(0, 0), (1, 3), (2, 5), (99, 5)])
def test_levels_are_dropped(small: Path, tmp_path: Path, levels: int, left: int) -> None:
    made = bsformat.repack(small, tmp_path / "a", levels=levels)
    assert made.n_blocks == 4 + left
    assert order_of(tmp_path / "a") == [row for row in order_of(small) if row[1] < levels]
    assert payloads(tmp_path / "a").items() <= payloads(small).items()
    with bsformat.open(tmp_path / "a") as file:
        forms = {form.kind for form in file.metadata.forms}
    assert ("sign" in forms) == (levels > 0)


@pytest.mark.parametrize("order", arrange.ORDERS)
def test_a_budget_keeps_what_a_plan_of_the_new_order_would_load(small: Path, tmp_path: Path, order: str) -> None:
    bsformat.repack(small, tmp_path / "all", order=order)
    with bsformat.open(tmp_path / "all") as file:
        low, high = file.minimum_bytes, file.total_bytes
        for budget in range(low, high + 1, 7):
            made = bsformat.repack(small, tmp_path / "a", order=order, budget=budget)
            plan = file.plan(budget)
            assert (made.n_blocks, made.total_bytes) == (plan.n_blocks, plan.resident_bytes)
            assert order_of(tmp_path / "a") == order_of(tmp_path / "all")[: plan.n_blocks - 4]
    with pytest.raises(BudgetError) as caught:
        bsformat.repack(small, tmp_path / "b", budget=low - 1)
    assert caught.value.reason == "budget-too-small"
    assert not (tmp_path / "b").exists()


def test_required_blocks_stay_first_whatever_is_asked_for(small: Path, tmp_path: Path) -> None:
    image = parse(small.read_bytes())
    image.required = 7  # with levels 0 of chains 6 and 4, and level 1 of chain 4
    source = tmp_path / "required.bstk"
    source.write_bytes(image.seal())
    for options in ({"order": "average"}, {"losses": LOSSES}, {"levels": 0}, {"order": "worth"}):
        bsformat.repack(source, tmp_path / "a", **options)
        with bsformat.open(tmp_path / "a") as file:
            assert file.index.required == 7
            assert list(zip(file.index.chain.tolist(), file.index.level.tolist(), strict=True))[4:7] == [
                (6, 0),
                (4, 0),
                (4, 1),
            ]
    assert order_of(tmp_path / "a") == [(6, 1, 2.0), (5, 0, 0.5)]


def test_other_codecs_and_back(small: Path, tmp_path: Path) -> None:
    bsformat.repack(small, tmp_path / "none", codec="none")
    bsformat.repack(tmp_path / "none", tmp_path / "zstd", codec="zstd")
    assert payloads(small) == payloads(tmp_path / "none") == payloads(tmp_path / "zstd")
    assert order_of(small) == order_of(tmp_path / "none") == order_of(tmp_path / "zstd")
    with bsformat.open(small) as a, bsformat.open(tmp_path / "none") as b, bsformat.open(tmp_path / "zstd") as c:
        assert [form.codec for form in b.metadata.forms] == ["none"] * 3
        assert b.index.stored.tolist() == b.index.length.tolist()
        assert c.index.digest.tobytes() == a.index.digest.tobytes()
        assert c.metadata.forms == a.metadata.forms
    assert sorted(os.listdir(tmp_path)) == ["none", "small.bstk", "zstd"]


def test_a_prefix_file_becomes_a_whole_file_of_what_it_holds(small: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as file:
        budget = file.planner.resident_bytes(7)
    bsformat.fetch(small, tmp_path / "prefix", budget)
    made = bsformat.repack(tmp_path / "prefix", tmp_path / "a", order="average")
    assert (made.n_blocks, made.source_blocks) == (7, 9)
    assert order_of(tmp_path / "a") == [(6, 0, 5.0), (4, 0, 4.0), (4, 1, 3.0)]
    assert payloads(tmp_path / "a").items() <= payloads(small).items()
    with bsformat.open(tmp_path / "a") as file:
        assert file.available_blocks == len(file) == 7
        assert file.metadata.extra["bstk.history"][0]["blocks"] == 7


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [4, 5, 6, 7, 8, 9]),
        ({"codec": "none"}, [4, 5, 6, 7, 8, 9]),
        ({"levels": 1}, [4, 5, 6]),
        ({"levels": 0}, [4]),
        ({"budget": 4327}, [4, 5, 6, 7, 8]),
        ({"order": "average"}, [4, 5, 6, 9]),  # 6, 4, 5, 4, 6 in place of 6, 4, 4, 6, 5
        ({"losses": LOSSES}, [4, 9]),  # 5, 4, 4, 6, 6
    ],
)
def test_points_of_a_curve_stay_where_the_prefix_has_the_same_blocks(
    small: Path, tmp_path: Path, options: dict[str, Any], left: list[int]
) -> None:
    source = with_curve(small, tuple((n, 100.0 - n) for n in range(4, 10)))
    made = bsformat.repack(source, tmp_path / "a", **options)
    with bsformat.open(source) as old, bsformat.open(tmp_path / "a") as new:
        (curve,) = new.metadata.curves
        for n, value in curve.points:
            assert value == 100.0 - n
            blocks = [{(int(f.index.chain[i]), int(f.index.level[i])) for i in range(n)} for f in (old, new)]
            assert blocks[0] == blocks[1]
    assert [n for n, _ in curve.points] == left
    assert (made.curve_points, made.source_curve_points) == (len(left), 6)


def test_a_curve_without_a_point_goes(small: Path, tmp_path: Path) -> None:
    made = bsformat.repack(with_curve(small, ((8, 1.0),)), tmp_path / "a", levels=1)
    with bsformat.open(tmp_path / "a") as file:
        assert file.metadata.curves == ()
    assert (made.curve_points, made.source_curve_points) == (0, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_keeps_chains_in_turn_and_every_block_once(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    chains = data.draw(st.permutations([c for c, n in enumerate(counts) for _ in range(n)]))
    level = [chains[:i].count(c) for i, c in enumerate(chains)]
    worth = [data.draw(st.floats(0, 1e6, width=32)) for _ in chains]

    class Index:
        required = 0

    class Fake:
        uri, available_blocks, index = "fake", len(chains), Index()

    index: Any = Fake.index
    index.worth, index.level = np.array(worth, "<f4"), np.array(level, "<u2")
    index.chain, index.length = np.array(chains, "<u4"), np.array([7 + c for c in chains], "<u8")
    for order in arrange.ORDERS:
        made = arrange.arrange(Fake(), order)  # type: ignore[arg-type]
        assert sorted(made.blocks) == list(range(len(chains)))
        for chain in set(chains):
            levels = [level[b] for b in made.blocks if chains[b] == chain]
            assert levels == sorted(levels)
        if order == "worth":
            assert made.worth == sorted(made.worth, reverse=True)


# --- what is wrong on the way in ---


def changed(path: Path, at: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    return bytes(data)


@pytest.mark.parametrize("codec", copying.CODECS)
@pytest.mark.parametrize("block", [0, 1, 4, 8])
def test_a_damaged_block_ends_it_and_leaves_what_was_there(small: Path, tmp_path: Path, codec: str, block: int) -> None:
    with bsformat.open(small) as file:
        at = file.block(block).offset
    out = tmp_path / "out.bstk"
    out.write_bytes(b"old")
    with pytest.raises(IntegrityError) as caught:
        bsformat.repack(MemorySource(changed(small, at)), out, codec=codec)
    assert (caught.value.reason, caught.value.offset) == ("block-digest", at)
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["out.bstk", "small.bstk"]


def test_every_damaged_byte_is_found(small: Path, tmp_path: Path) -> None:
    """But those of parts that are not copied: the padding after the attachments."""
    with bsformat.open(small) as file:
        head = file.superblock
        unused = range(head.head_length + head.attachments_length, head.blocks_offset)
    data = small.read_bytes()
    for at in range(0, len(data), 5):
        if at in unused:
            continue
        with pytest.raises(BstkError) as caught:
            bsformat.repack(MemorySource(changed(small, at)), tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["small.bstk"]


def test_a_dropped_block_may_be_damaged(small: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as file:
        at = file.block(8).offset
    bsformat.repack(MemorySource(changed(small, at)), tmp_path / "out", budget=4327)
    assert bsformat.verify(tmp_path / "out").ok


def test_another_root_than_demanded(small: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as file:
        for source in (small, file):
            with pytest.raises(IntegrityError) as caught:
                bsformat.repack(source, tmp_path / "a", root="0" * 64)
            assert caught.value.reason == "root-mismatch"
        bsformat.repack(file, tmp_path / "a", root=file.root.upper())


@pytest.mark.parametrize("codec", copying.CODECS)
def test_a_full_disk(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError) as caught:
        bsformat.repack(small, tmp_path / "a", codec=codec)
    assert caught.value.reason == "disk-full"
    assert os.listdir(tmp_path) == ["small.bstk"]


def test_over_itself(small: Path) -> None:
    before = payloads(small)
    made = bsformat.repack(small, small, order="average")
    assert payloads(small) == before
    with bsformat.open(small, root=made.root):
        pass


# --- what it costs ---

BLOCK = 1 << 20


def large(path: Path, chains: int, levels: int) -> Path:
    """A file of blocks of about 1 MiB: 4096 rows of 2048 columns in each chain, level by level."""
    tensors = [bsformat.Tensor("r", (4096,), "F32"), bsformat.Tensor("c", (2048,), "F32")]
    tensors += [bsformat.Tensor(f"w{i}", (4096, 2048), "F16", 4096, 0, 1) for i in range(chains)]
    form = bsformat.Form("sign", rank=1, factors="F16")
    draw = np.random.default_rng(3)
    with bsformat.Writer(path, tensors) as writer:
        writer.put(0, bsformat.Form("raw"), np.ones(4096, "<f4").tobytes())
        writer.put(1, bsformat.Form("raw"), np.ones(2048, "<f4").tobytes())
        for chain in range(chains):
            for _ in range(levels):
                writer.put(2 + chain, form, draw.bytes(BLOCK) + bytes(2 * (4096 + 2048)))
        writer.finish([(2 + chain, 1.0 / (1 + level)) for level in range(levels) for chain in range(chains)])
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large(tmp_path_factory.mktemp("wide") / "wide.bstk", 8, 6)


@pytest.mark.parametrize("codec", copying.CODECS)
def test_memory_does_not_grow_with_the_file(wide: Path, tmp_path: Path, codec: str) -> None:
    assert wide.stat().st_size > 48 * BLOCK
    losses = {f"w{i}": [[float(v * (i + 1)) for v in range(6, -1, -1)]] for i in range(8)}
    tracemalloc.start()
    try:
        bsformat.repack(wide, tmp_path / "a", losses=losses, codec=codec)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A range, once more while the first one is put together, and the block in hand: stored, decoded, compressed.
    assert peak < 2 * copying.SPAN + 6 * BLOCK < wide.stat().st_size // 3
    assert bsformat.verify(tmp_path / "a").ok


def test_what_is_dropped_is_not_read(wide: Path, tmp_path: Path, scripted: Scripted) -> None:
    scripted.data = wide.read_bytes()
    made = bsformat.repack(scripted.url(), tmp_path / "a", levels=2)
    with bsformat.open(wide) as file:
        end = file.block(2 + 16).offset
    assert made.n_blocks == 2 + 16
    # The head, then ranges of at most 4 MiB, of whole blocks: what was kept lies together.
    assert len(scripted.requests) == made.requests <= 2 + -(-end // (copying.SPAN - BLOCK))
    assert made.bytes_read <= end + 16384
    read = sum(r.stop - r.start for r in scripted.requests)
    assert read == made.bytes_read
    assert payloads(tmp_path / "a").items() <= payloads(wide).items()


def test_blocks_that_lie_apart_are_read_apart(wide: Path, tmp_path: Path, scripted: Scripted) -> None:
    """One chain of eight: between two of its levels lie 7 MiB."""
    bsformat.repack(wide, tmp_path / "a", losses={f"w{i}": [[7.0 - i] * 7] for i in range(8)}, order="average")
    scripted.data = (tmp_path / "a").read_bytes()
    with bsformat.open(scripted.url(), cache=False) as file:
        numbers = [b for b in range(len(file)) if int(file.index.chain[b]) == 2]
        before = file.source.requests, file.source.bytes_read
        assert [block.level for block, *_ in copying.checked_blocks(file, numbers)] == list(range(6))
        stored = sum(file.block(b).stored for b in numbers)
        assert file.source.requests - before[0] == 6
        assert file.source.bytes_read - before[1] == stored - max(0, 16384 - file.block(2).offset)


def test_small_gaps_are_read_through(small: Path) -> None:
    with bsformat.open(small) as file:
        spans = list(copying.spans_of(file, [0, 4, 8]))
        assert [(span.first, span.stop) for span in spans] == [(0, 9)]
        assert list(copying.spans_of(file, [])) == []


def test_padding_is_checked(small: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as file:
        block = file.block(2)
        at = block.offset + block.stored
        assert at % 64
    with pytest.raises(FormatError) as caught:
        bsformat.repack(MemorySource(changed(small, at)), tmp_path / "out")
    assert caught.value.reason == "padding"
