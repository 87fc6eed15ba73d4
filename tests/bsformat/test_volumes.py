"""Files in several volumes: how they are cut, read, verified, joined and replaced on a local disk."""

import os
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random

import msgpack
import pytest

import bsformat
from bsformat import cutting, metadata_reader, registry, superblock
from bsformat.errors import BstkError, FormatError, NotFoundError, RepackError, WriteError
from bsformat.metadata import Volume
from tests.bsformat.conftest import first_problem, write_small
from tests.bsformat.many import read_blocks, write_many
from tests.bsformat.volumes import SIZE, exchange, joined, names_of, write_volumes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The first volume of several."""
    return write_volumes(tmp_path / "m")


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A file of one object of the same blocks."""
    write_many(tmp_path / "single.bstk", n_tensors=90)
    return tmp_path / "single.bstk"


def problems(path: Path) -> list[str]:
    return [error.reason for error in bsformat.verify(path).problems]


# ------------------------------------------------------------------------------------------------ cutting


def test_a_file_is_cut_at_blocks_into_volumes_of_the_size(path: Path) -> None:
    with bsformat.open(path) as container:
        volumes = container.volumes
        assert (container.version, container.superblock.must) == ("1.1", 1)
        assert [volume.name for volume in volumes] == sorted(os.listdir(path.parent), key=lambda n: (len(n), n))
        assert [volume.name for volume in volumes[:2]] == ["model.bstk", "model.00002.bstk"]
        assert len(volumes) > 3
        for before, after in pairwise(volumes):
            assert before.offset + before.length == after.offset
            assert before.first_block + before.n_blocks == after.first_block
            assert container.block(after.first_block).offset == after.offset
            # As full as it can be: the next block does not fit.
            assert before.length <= SIZE < before.length + container.block(after.first_block).stored
        assert volumes[-1].offset + volumes[-1].length == container.size
        for volume in volumes:
            assert (path.parent / volume.name).stat().st_size == volume.length


def test_all_blocks_are_those_of_the_file_in_one(path: Path, single: Path) -> None:
    with bsformat.open(path) as container, bsformat.open(single) as whole:
        assert len(container) == len(whole)
        assert read_blocks(container, 0, len(whole)) == read_blocks(whole, 0, len(whole))
        assert [container.read_block(b) for b in (0, 150, len(whole) - 1)] == [
            whole.read_block(b) for b in (0, 150, len(whole) - 1)
        ]
        assert container.attachment("tokenizer.json") == whole.attachment("tokenizer.json")
        assert container.plan("50%").n_blocks == whole.plan("50%").n_blocks


def test_no_range_that_is_read_reaches_over_the_end_of_a_volume(path: Path) -> None:
    with bsformat.open(path) as container:
        starts = {volume.first_block for volume in container.volumes}
        spans = list(container.spans(0, len(container), 1 << 20))
        assert starts <= {span.first for span in spans}
        assert all(a.offset + a.length == b.offset for a, b in pairwise(spans))
        for span in spans:
            volume = container.volume_of(span.first)
            assert volume is not None
            assert volume.offset <= span.offset
            assert span.offset + span.length <= volume.offset + volume.length
        # A range of one's own may: it is read as one of each.
        at = container.volumes[1].offset
        assert bytes(container.read(at - 50, 100)) == joined(path)[at - 50 : at + 50]


def test_whatever_the_sizes_no_volume_is_larger_and_nothing_is_lost(tmp_path: Path) -> None:
    draw = Random(7)
    for turn in range(12):
        sizes = [draw.choice((1, 63, 64, 65, 500, draw.randrange(1, 3000))) for _ in range(draw.randrange(1, 60))]
        path = tmp_path / f"{turn}.bstk"
        with bsformat.Writer(path, [bsformat.Tensor(f"x{i}", (n,), "U8") for i, n in enumerate(sizes)]) as writer:
            data = [draw.randbytes(size) for size in sizes]
            for chain, block in enumerate(data):
                writer.put(chain, bsformat.Form("raw"), block)
            size = draw.randrange(7000, 20_000)
            root = writer.finish([], volume_size=size)
        with bsformat.open(path, root=root) as container:
            assert bsformat.verify(container).ok
            assert [container.read_block(b) for b in range(len(container))] == data
            assert all(volume.length <= size for volume in container.volumes)
            # No more volumes than need be: no two that follow each other would fit one.
            assert all(a.length + b.length > size for a, b in pairwise(container.volumes[1:]))
            assert (container.size <= size) is (container.volumes == ())


def test_what_fits_one_object_is_one_of_version_1_0(tmp_path: Path, single: Path) -> None:
    made = bsformat.repack(single, tmp_path / "out.bstk", volume_size="1GiB")
    again = bsformat.repack(single, tmp_path / "again.bstk", volume_size=made.size)
    assert (made.n_volumes, again.n_volumes) == (1, 1)
    assert os.listdir(tmp_path).count("out.00002.bstk") == 0
    with bsformat.open(tmp_path / "out.bstk") as container:
        assert (container.version, container.superblock.must, container.volumes) == ("1.0", 0, ())


def test_the_writer_cuts_too(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a.bstk", [bsformat.Tensor(f"x{i}", (100,), "U8") for i in range(9)]) as writer:
        for chain in range(9):
            writer.put(chain, bsformat.Form("raw"), os.urandom(100))
        root = writer.finish([], volume_size=1500)
    assert bsformat.verify(tmp_path / "a.bstk", root=root).ok
    assert len(names_of(tmp_path / "a.bstk")) > 1


def test_a_first_volume_may_hold_the_head_alone(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a.bstk", [bsformat.Tensor("x", (3000,), "U8")]) as writer:
        writer.put(0, bsformat.Form("raw"), os.urandom(3000))
        writer.finish([], volume_size=3000)
    with bsformat.open(tmp_path / "a.bstk") as container:
        assert [volume.n_blocks for volume in container.volumes] == [0, 1]
    assert problems(tmp_path / "a.bstk") == []


def test_equal_blocks_make_equal_volumes(tmp_path: Path, single: Path) -> None:
    """What changes the head alone changes the first volume alone, while the cuts are the same."""
    folders = [tmp_path / "one", tmp_path / "two"]
    with bsformat.open(single) as container:
        for folder in folders:
            folder.mkdir()
            bsformat.rewrite(container, folder / "m.bstk", extra={"note": folder.name}, volume_size=SIZE)
    names = names_of(folders[0] / "m.bstk")
    made = [[(folder / name).read_bytes() for name in names] for folder in folders]
    assert made[0][0] != made[1][0]
    assert made[0][1:] == made[1][1:]


@pytest.mark.parametrize("size", [1, 5000])
def test_a_size_that_nothing_fits_into(tmp_path: Path, single: Path, size: int) -> None:
    with pytest.raises(WriteError) as raised:
        bsformat.repack(single, tmp_path / "out.bstk", volume_size=size)
    assert raised.value.reason == "volume-size"
    assert "name a larger size" in str(raised.value)
    assert os.listdir(tmp_path) == ["single.bstk"]


def test_a_block_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a.bstk", [bsformat.Tensor("x", (9000,), "U8")]) as writer:
        writer.put(0, bsformat.Form("raw"), os.urandom(9000))
        with pytest.raises(WriteError, match="does not hold block 0, which has 9000"):
            writer.finish([], volume_size=8000)


def test_more_volumes_than_there_may_be(tmp_path: Path, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_VOLUMES", 2)
    with pytest.raises(WriteError, match="more than 2") as raised:
        bsformat.repack(single, tmp_path / "out.bstk", volume_size=SIZE)
    assert raised.value.reason == "volume-size"


@pytest.mark.parametrize("name", ["a b.bstk", "ö.bstk", "-a.bstk", "a" * 255])
def test_a_name_that_volumes_cannot_have(tmp_path: Path, single: Path, name: str) -> None:
    with pytest.raises(WriteError, match="name an output of letters"):
        bsformat.repack(single, tmp_path / name, volume_size=SIZE)
    assert os.listdir(tmp_path) == ["single.bstk"]


def test_any_other_name(tmp_path: Path, single: Path) -> None:
    bsformat.repack(single, tmp_path / "weights.v2", volume_size=SIZE)
    assert names_of(tmp_path / "weights.v2")[:2] == ["weights.v2", "weights.v2.00002.bstk"]
    assert cutting.volume_name("/x/model.bstk", 12345) == "model.12345.bstk"


# ------------------------------------------------------------------------------------------------ splitting, joining


def test_split_join_and_resize_by_repack(tmp_path: Path, path: Path, single: Path) -> None:
    larger = bsformat.repack(path, tmp_path / "larger.bstk", volume_size=2 * SIZE)
    assert 1 < larger.n_volumes < len(names_of(path))
    one = bsformat.repack(tmp_path / "larger.bstk", tmp_path / "one.bstk")
    assert one.n_volumes == 1
    for made in (larger, one):
        assert bsformat.verify(made.path, root=made.root).ok
    with bsformat.open(one.path) as container, bsformat.open(single) as whole:
        assert container.version == "1.0"
        assert read_blocks(container, 0, len(whole)) == read_blocks(whole, 0, len(whole))
        steps = container.metadata.extra["bstk.history"]
        assert [step["options"].get("volume_size") for step in steps] == [SIZE, 2 * SIZE, None]


def test_another_order_and_codec_in_volumes(tmp_path: Path, path: Path, single: Path) -> None:
    for how in ({"order": "average"}, {"codec": "zstd"}, {"levels": 2}):
        made = bsformat.repack(path, tmp_path / "out.bstk", volume_size=SIZE, **how)
        plain = bsformat.repack(single, tmp_path / "plain.bstk", **how)
        assert bsformat.verify(made.path, root=made.root).ok
        with bsformat.open(made.path) as container, bsformat.open(plain.path) as whole:
            assert read_blocks(container, 0, len(whole)) == read_blocks(whole, 0, len(whole))
            assert container.volumes


def test_volumes_that_are_joined_keep_their_root(tmp_path: Path, path: Path) -> None:
    whole = joined(path)
    block = superblock.decode(whole[:128], "")
    one = tmp_path / "one.bstk"
    one.write_bytes(block.holding(block.file_length).encode() + whole[128:])
    with bsformat.open(path) as container:
        assert bsformat.verify(one, root=container.root).ok
    assert [error.reason for error in [first_problem(whole)] if error] == ["trailing-bytes"]
    assert cutting.split(str(one)) == tuple(names_of(path)[1:])
    for name in ("one.bstk", *names_of(path)[1:]):
        assert (tmp_path / name).read_bytes() == (path.parent / name.replace("one.", "model.")).read_bytes()
    assert cutting.split(str(one)) == ()  # there is nothing to cut any more


@pytest.mark.parametrize("name", ["model.00003.bstk", "MODEL.00002.bstk"])
def test_a_file_is_not_split_into_its_own_place(path: Path, tmp_path: Path, name: str) -> None:
    single = tmp_path / "joined" / name
    single.parent.mkdir()
    root = bsformat.fetch(path, single).root
    with pytest.raises(WriteError, match="one of its volumes is called 'model"):
        cutting.split(str(single))
    assert os.listdir(single.parent) == [name]
    assert bsformat.verify(single, root=root).ok


def test_a_file_does_not_become_files_of_another_kind(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its author chooses the names of volumes and what is in them, and the folder may be one that is run from."""
    monkeypatch.setattr(cutting, "volume_name", lambda path, number: f"modeling_{number}.py")
    odd = tmp_path / "odd" / "model.bstk"
    odd.parent.mkdir()
    bsformat.repack(path, odd, volume_size=SIZE)
    bsformat.fetch(odd, tmp_path / "single.bstk")
    with pytest.raises(WriteError, match=r"called 'modeling_2\.py'.*repack it"):
        cutting.split(str(tmp_path / "single.bstk"))


def test_nothing_is_split_that_says_nothing_of_volumes(single: Path) -> None:
    before = single.read_bytes()
    assert cutting.split(str(single)) == ()
    assert single.read_bytes() == before


# ------------------------------------------------------------------------------------------------ what is wrong


def test_a_volume_that_is_missing(path: Path) -> None:
    third = path.parent / names_of(path)[2]
    third.unlink()
    (error,) = bsformat.verify(path).problems
    assert isinstance(error, NotFoundError)
    assert (error.reason, error.where) == ("volume-missing", str(third))
    assert "volume 3 of" in error.message
    with bsformat.open(path) as container:
        volume = container.volumes[2]
        read_blocks(container, 0, volume.first_block)
        with pytest.raises(NotFoundError, match="all volumes belong into one folder"):
            container.read_block(volume.first_block)
        container.read_block(volume.first_block + volume.n_blocks)


@pytest.mark.parametrize(("change", "reason"), [(-1, "volume-truncated"), (1, "volume-trailing-bytes")])
@pytest.mark.parametrize("number", [1, -1])
def test_a_volume_of_another_length(path: Path, number: int, change: int, reason: str) -> None:
    place = path.parent / names_of(path)[number]
    data = place.read_bytes()
    place.write_bytes(data[:change] if change < 0 else data + bytes(change))
    (error,) = bsformat.verify(path).problems
    assert (error.reason, error.where) == (reason, str(place))
    with bsformat.open(path) as container, pytest.raises(FormatError) as raised:
        container.read_block(container.volumes[number].first_block)
    assert raised.value.reason == reason


def test_volumes_in_each_others_place(path: Path) -> None:
    exchange(path, 1, 2)
    assert set(problems(path)) == {"volume-truncated", "volume-trailing-bytes"}


def test_a_volume_of_another_file(tmp_path: Path, path: Path) -> None:
    other = write_volumes(tmp_path / "other", seed=2)
    assert names_of(other) == names_of(path)
    name = names_of(path)[1]
    (path.parent / name).write_bytes((other.parent / name).read_bytes())
    found = bsformat.verify(path).problems
    assert {error.reason for error in found} <= {"block-digest", "volume-truncated", "volume-trailing-bytes"}
    with bsformat.open(path) as container, pytest.raises(FormatError) as raised:
        container.read_block(container.volumes[1].first_block)
    if raised.value.reason == "block-digest":
        assert f"in volume {name}" in raised.value.message


def test_every_volume_is_checked_whatever_is_wrong_with_one(path: Path) -> None:
    names = names_of(path)
    (path.parent / names[1]).unlink()
    damaged = path.parent / names[2]
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    (path.parent / names[3]).write_bytes(b"")
    assert problems(path)[:3] == ["volume-missing", "block-digest", "volume-truncated"]


def test_a_volume_that_is_written_to_while_it_is_read(path: Path) -> None:
    with bsformat.open(path) as container:
        volume = container.volumes[1]
        container.read_block(volume.first_block)
        place = path.parent / volume.name
        place.write_bytes(place.read_bytes())
        os.utime(place, (1, 1))
        with pytest.raises(BstkError) as raised:
            container.read_block(volume.first_block + 1)
        assert (raised.value.reason, raised.value.where) == ("source-changed", str(place))


def test_a_volume_in_place_of_the_file(path: Path) -> None:
    with pytest.raises(FormatError, match="if it is a volume of a file, name the first one") as raised:
        bsformat.open(path.parent / names_of(path)[1])
    assert raised.value.reason == "not-bstk"


def test_a_source_that_has_no_others(path: Path) -> None:
    data = path.read_bytes()
    error = first_problem(data)
    assert error is not None
    assert error.reason == "volume-missing"

    class Lone:
        name = "lone"

        def start(self, length: int) -> tuple[bytes, int]:
            return data[:length], len(data)

        def get(self, offset: int, length: int) -> bytes:
            return data[offset : offset + length]

        def close(self) -> None:
            pass

    with bsformat.open(Lone()) as container:
        container.read_block(0)
        with pytest.raises(NotFoundError, match="no place that has others"):
            container.read_block(len(container) - 1)


def test_a_link_is_looked_beside_and_not_behind(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "model.bstk").symlink_to(path)
    assert problems(folder / "model.bstk") == ["volume-missing"] * (len(names_of(path)) - 1)
    for name in names_of(path)[1:]:
        (folder / name).symlink_to(path.parent / name)
    assert problems(folder / "model.bstk") == []


def test_a_name_leads_nowhere_else() -> None:
    for name in ("../x", "/etc/passwd", "..", "a/b", "a\\b", "C:x", "a\0", "é", "", ".", "a" * 256, "a\n"):
        assert not metadata_reader.is_volume_name(name), name
    for name in ("a", "_", "0.-_", "model.00002.bstk", "a" * 255):
        assert metadata_reader.is_volume_name(name)


def test_the_number_of_volumes_is_bounded() -> None:
    def read(count: int) -> tuple[Volume, ...]:
        maps = [{"name": f"v{i}", "first_block": i} for i in range(count)]
        top = {"writer": "x", "tensors": [], "forms": [], "aliases": {}, "attachments": [], "curves": [], "extra": {}}
        return metadata_reader.decode(msgpack.packb(top | {"volumes": maps}), "a", has_volumes=True).volumes

    assert len(read(registry.MAX_VOLUMES)) == registry.MAX_VOLUMES
    with pytest.raises(FormatError) as raised:
        read(registry.MAX_VOLUMES + 1)
    assert raised.value.reason == "metadata-value"


def test_a_reader_of_version_1_0_refuses_it_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bit alone, before anything that 1.1 added is looked at; the rest of the head may be anything."""
    monkeypatch.setattr(registry, "KNOWN_MUST", 0)
    for data in (path.read_bytes(), path.read_bytes()[:32] + b"\xff" * 96):
        error = first_problem(data)
        assert error is not None
        assert error.reason == "feature-unsupported"
        assert "the feature volumes" in error.message


def test_volumes_are_found_when_the_process_is_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with bsformat.open("model.bstk") as container:
        monkeypatch.chdir("/")
        assert bsformat.verify(container).ok


# ------------------------------------------------------------------------------------------------ replacing


def test_a_file_is_replaced_with_all_its_volumes(path: Path) -> None:
    """What the old file had more, and this program named, goes; the output may be the source."""
    before = names_of(path)
    stranger = path.parent / "model.90000.bstk"
    stranger.write_bytes(b"somebody's")
    made = bsformat.repack(path, path, volume_size=2 * SIZE)
    assert bsformat.verify(path, root=made.root).ok
    assert sorted(os.listdir(path.parent)) == sorted([*names_of(path), stranger.name])
    assert len(names_of(path)) < len(before)
    bsformat.repack(path, path)
    assert sorted(os.listdir(path.parent)) == ["model.90000.bstk", "model.bstk"]


@pytest.mark.parametrize("copied", [False, True], ids=["renamed", "copied"])
def test_volumes_that_another_file_has_are_not_replaced(path: Path, copied: bool) -> None:
    """A first volume may be renamed, as to keep the file, and the others keep their names: they are still its own."""
    kept = path.with_name("kept.old")
    if copied:
        shutil.copy(path, kept)
    else:
        path.rename(kept)
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)}
    with pytest.raises(WriteError, match=r"volume model\.00002\.bstk would replace that of kept\.old.*another output"):
        bsformat.repack(kept, path, budget="60%", volume_size=SIZE)
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == before
    # In one object it replaces the first one alone, and what is left over of that is not left over at all.
    made = bsformat.repack(kept, path, budget="60%")
    assert bsformat.verify(path, root=made.root).ok
    assert bsformat.verify(kept).ok


def test_a_file_that_is_whole_again_has_no_volumes_to_remove(path: Path, tmp_path: Path) -> None:
    other = path.parent / "other" / path.name
    other.parent.mkdir()
    bsformat.fetch(path, other)
    stranger = other.parent / "model.00002.bstk"
    stranger.write_bytes(b"somebody's")
    bsformat.repack(other, other)
    assert stranger.read_bytes() == b"somebody's"


def test_a_link_to_the_file_that_is_replaced_does_not_keep_its_volumes(path: Path) -> None:
    (path.parent / "latest.bstk").symlink_to(path.name)
    bsformat.repack(path, path, volume_size=2 * SIZE)
    assert bsformat.verify(path.parent / "latest.bstk").ok


def test_what_a_killed_process_left_and_broken_links_keep_no_volumes(path: Path) -> None:
    """The first volume is the last to take its name: what was to take it lies beside the others, whole."""
    shutil.copy(path, path.with_name(f".{path.name}.01234567.part"))
    (path.parent / "loop").symlink_to("loop")
    made = bsformat.repack(path, path, volume_size=2 * SIZE)
    assert bsformat.verify(path, root=made.root).ok


def test_a_failure_leaves_the_old_file_and_its_volumes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)}

    def full(fd: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(WriteError) as raised:
        bsformat.repack(path, path, order="average", volume_size=SIZE)
    assert raised.value.reason == "disk-full"
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == before


def test_a_crash_between_the_volumes_leaves_no_file_that_looks_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def crash(temporary: str, place: str) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        os.replace(temporary, place)

    monkeypatch.setattr(cutting, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        bsformat.repack(path, path, order="average", volume_size=SIZE)
    assert not path.exists()
    assert not any(name.endswith(".part") for name in os.listdir(path.parent))


def test_no_more_files_are_open_than_a_few(tmp_path: Path, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "_OPEN", 2)
    made = bsformat.repack(single, tmp_path / "out.bstk", order="average", volume_size=SIZE)
    assert made.n_volumes > 3
    assert bsformat.verify(made.path, root=made.root).ok


def test_a_volume_size_that_is_none(tmp_path: Path) -> None:
    write_small(tmp_path / "a.bstk")
    with pytest.raises(BstkError) as raised:
        bsformat.repack(tmp_path / "a.bstk", tmp_path / "b.bstk", volume_size="60%")
    assert raised.value.reason == "budget-invalid"
    assert not isinstance(raised.value, RepackError)
