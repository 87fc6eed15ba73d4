"""What the writer writes, byte for byte, and what it leaves behind when it fails: nothing."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
import zstandard

import bsformat
from bsformat import atomic, sparse
from bsformat.errors import FormatError, WriteError
from tests.bsformat import encoder
from tests.bsformat.conftest import (
    F16_FORM,
    ORDER,
    RAW_FORM,
    VOCABULARY,
    first_problem,
    sign_payload,
    small_blocks,
    small_tensors,
    write_small,
)

#: The root of the small model's file, and BLAKE3 of the whole file. They change with the format, and only then: a
#: change here needs a line in the changelog of the specification.
GOLDEN_ROOT = "d867f401b709ec682caa6e6857dd5d46a952310a4131ec6305ed610eae91e836"
GOLDEN_FILE = "9328e98f91b5cbe6e0d8a9e1567daeee0607547af2a5c02865877e8d706ca54b"
#: The same without what the zstd library decides: BLAKE3 of the decoded head and the decoded blocks.
GOLDEN_DECODED = "20966bc52f7c6aa8e9bd3921ffc391a187799dfba1deb871ce0d18e247426a5b"
GOLDEN_ZSTD = (1, 5, 7)


def files(folder: Path) -> list[str]:
    """Everything that lies in a folder, hidden files too."""
    return sorted(os.listdir(folder))


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The small model as a writer of a fixed name writes it."""
    monkeypatch.setattr("bsformat.writer.WRITER", "golden")
    write_small(tmp_path / "golden.bstk")
    return (tmp_path / "golden.bstk").read_bytes()


def test_golden_bytes(golden: bytes) -> None:
    if zstandard.ZSTD_VERSION != GOLDEN_ZSTD:
        pytest.skip(f"zstd {zstandard.ZSTD_VERSION} may pack differently than {GOLDEN_ZSTD}, which made the constant")
    assert (golden[96:128].hex(), encoder.digest(golden).hex()) == (GOLDEN_ROOT, GOLDEN_FILE)


def test_golden_content(golden: bytes) -> None:
    image = encoder.parse(golden)
    for record in image.meta["attachments"]:
        for name in ("stored", "digest"):
            record.pop(name, None)
    hasher = blake3.blake3(repr(image.meta).encode())
    for block in image.blocks:
        compressed = image.meta["forms"][block.form]["codec"] == "zstd"
        hasher.update(repr((block.chain, block.level, block.form, block.worth)).encode())
        hasher.update(encoder.unzstd(block.data) if compressed else block.data)
    assert hasher.hexdigest() == GOLDEN_DECODED


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    roots = [write_small(tmp_path / name) for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert roots[0] == roots[1] == (tmp_path / "a").read_bytes()[96:128].hex()


def test_the_order_of_the_calls_does_not_matter(small: Path, tmp_path: Path) -> None:
    blocks = small_blocks()
    # Levels of one chain keep their order; chains come in any.
    mixed = sorted(blocks, key=lambda block: -block[0])
    assert [c for c, *_ in mixed] != [c for c, *_ in blocks]
    with bsformat.Writer(tmp_path / "b", small_tensors()) as writer:
        writer.attach("tokenizer/vocab.json", VOCABULARY)
        for chain, form, data in mixed:
            writer.put(chain, form, data)
        writer.attach("config.json", b'{"model_type": "none"}')
        writer.finish(ORDER, extra={"recipe": {"rank": [2, 1]}}, aliases={"head.weight": "w.weight"})
    assert (tmp_path / "b").read_bytes() == small.read_bytes()


def test_a_second_implementation_makes_the_same_bytes(small: Path) -> None:
    data = small.read_bytes()
    image = encoder.parse(data)
    for block in image.blocks:
        block.offset = block.stored = block.digest = None  # computed anew
        if image.meta["forms"][block.form]["codec"] == "none":
            block.length = None
    assert image.seal() == data
    assert [(b.chain, b.level) for b in image.blocks] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (6, 0),
        (4, 0),
        (4, 1),
        (6, 1),
        (5, 0),
    ]
    assert [b.data for b in image.blocks[4:]] == [small_blocks()[i][2] for i in (6, 4, 7, 8, 5)]


def test_layout(small: Path) -> None:
    container = bsformat.open(small)
    head = container.superblock
    assert container.index.offset[0] == head.blocks_offset
    assert not (container.index.offset % 64).any()
    assert head.file_length == head.present_length == small.stat().st_size == container.size
    # Only what compresses is compressed.
    assert [container.block(i).form.codec for i in range(4)] == ["none", "zstd", "none", "none"]
    assert {container.block(i).form.codec for i in range(4, 9)} == {"none"}


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_small(tmp_path / "a")
    finally:
        os.umask(previous)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert files(tmp_path) == ["a"]


def test_the_umask_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of all threads: what another one made in between would be open to everybody, and two would lose it."""
    monkeypatch.setattr(os, "umask", None)
    write_small(tmp_path / "a")
    bsformat.repack(tmp_path / "a", tmp_path / "b.bstk", volume_size=100_000)
    write_small(tmp_path / "a")


def test_replaces_an_existing_file(small: Path) -> None:
    expected = small.read_bytes()
    small.write_bytes(b"old")
    write_small(small)
    assert small.read_bytes() == expected


# --- failures -------------------------------------------------------------------------------------------------------


class Full(io.BytesIO):
    """A file on a disk that is full after ``room`` bytes."""

    def __init__(self, target: Any, room: int) -> None:
        super().__init__()
        self.target, self.room = target, room

    def write(self, data: Any) -> int:
        if self.target.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count: int = self.target.write(data)
        return count

    def __getattribute__(self, name: str) -> Any:
        if name in ("write", "target", "room", "__class__"):
            return super().__getattribute__(name)
        return getattr(self.target, name)


@pytest.fixture(params=[0, 1, 100, 128, 300, 1000])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """No more than so many bytes can be written to the file that is to appear."""
    real = os.fdopen

    class Opened:
        def __init__(self, fd: int, mode: str) -> None:
            self.file = real(fd, mode)

        def __enter__(self) -> Full:
            return Full(self.file, request.param)

        def __exit__(self, *_: object) -> None:
            self.file.close()

    monkeypatch.setattr(atomic.os, "fdopen", Opened)
    return request.param


@pytest.mark.parametrize("existing", [None, b"precious"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, full_disk: int, existing: bytes | None) -> None:
    target = tmp_path / "a.bstk"
    if existing is not None:
        target.write_bytes(existing)
    with pytest.raises(WriteError) as caught:
        write_small(target)
    assert caught.value.reason == "disk-full"
    assert str(target) in str(caught.value)
    assert "No space left" in str(caught.value)
    assert files(tmp_path) == ([] if existing is None else ["a.bstk"])
    assert existing is None or target.read_bytes() == existing


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"may not mount a file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def noise_model(size: int) -> tuple[list[bsformat.Tensor], list[tuple[int, bsformat.Form, bytes]]]:
    """One raw tensor of ``size`` bytes that do not compress."""
    return [bsformat.Tensor("noise", (size,), "U8")], [(0, RAW_FORM, np.random.default_rng(0).bytes(size))]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(200_000, id="while-spooling"),
        pytest.param(50_000, id="while-laying-down"),
        pytest.param(63_000, id="in-the-buffer-at-the-end-of-the-spool"),
        pytest.param(66_000, id="just-too-large"),
    ],
)
@pytest.mark.parametrize("existing", [None, b"precious"])
def test_a_disk_that_really_is_full(tmpfs: Path, size: int, existing: bytes | None) -> None:
    target = tmpfs / "a.bstk"
    if existing is not None:
        target.write_bytes(existing)
    tensors, blocks = noise_model(size)

    def write() -> None:
        with bsformat.Writer(target, tensors) as writer:
            for block in blocks:
                writer.put(*block)
            writer.finish([])

    with pytest.raises(WriteError) as caught:
        write()
    assert caught.value.reason == "disk-full"
    assert files(tmpfs) == ([] if existing is None else ["a.bstk"])
    assert existing is None or target.read_bytes() == existing


def test_a_file_size_limit(tmp_path: Path) -> None:
    """EFBIG, as `ulimit -f` gives it: another cause than a full disk, and nothing is left behind either."""
    program = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "import bsformat\n"
        "from bsformat.errors import WriteError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with bsformat.Writer('a.bstk', [bsformat.Tensor('n', (200_000,), 'U8')]) as writer:\n"
        "        writer.put(0, bsformat.Form('raw'), np.random.default_rng(0).bytes(200_000))\n"
        "        writer.finish([])\n"
        "except WriteError as error:\n"
        "    print(error.reason, error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("write a.bstk: ")
    assert files(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as caught:
        bsformat.Writer(tmp_path / "none" / "a.bstk", small_tensors())
    assert caught.value.reason == "write"
    assert str(tmp_path / "none" / "a.bstk") in str(caught.value)


def test_a_folder_where_the_file_should_go(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(WriteError) as caught:
        write_small(tmp_path / "a")
    assert caught.value.reason == "write"
    assert files(tmp_path) == ["a"]


def test_an_interrupt_leaves_nothing_behind(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small.read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_small(small)
    assert files(small.parent) == ["small.bstk"]
    assert small.read_bytes() == before


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(atomic.os, name, lambda *args, n=name, f=real: (calls.append(n), f(*args))[1])
    write_small(tmp_path / "a")
    assert calls == ["fsync", "replace", "fsync"]


def test_leaving_without_finishing_writes_nothing(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()) as writer:
        writer.put(*small_blocks()[0])
    assert files(tmp_path) == []


# --- what the writer refuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "blocks"),
    [
        ("index-chain", [(7, RAW_FORM, bytes(100))]),
        ("index-chain", [(-1, F16_FORM, small_blocks()[6][2])]),
        ("index-form", [(4, RAW_FORM, bytes(100))]),
        ("index-form", [(0, F16_FORM, bytes(100))]),
        ("index-form", [small_blocks()[0], small_blocks()[0]]),
        ("index-block-length", [(0, RAW_FORM, bytes(15))]),
        ("index-block-length", [(4, F16_FORM, sign_payload(F16_FORM, 3, 10, 0))]),
        ("index-block-length", [(6, F16_FORM, sign_payload(F16_FORM, 2, 10, 0))]),
        ("block-padding", [(4, F16_FORM, b"\xff" * 4 + sign_payload(F16_FORM, 2, 10, 0)[4:])]),
        ("block-values", [(4, F16_FORM, sign_payload(F16_FORM, 2, 10, 0)[:-2] + b"\x00\x7c")]),
        ("block-values", [(2, RAW_FORM, encoder.floats(1, 2, float("nan"), 4, 5))]),
        ("block-values", [(3, RAW_FORM, b"\x80\x7f" * 30)]),
    ],
)
def test_put_refuses(tmp_path: Path, reason: str, blocks: list[tuple[int, bsformat.Form, bytes]]) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()) as writer:
        for block in blocks[:-1]:
            writer.put(*block)
        with pytest.raises(FormatError) as caught:
            writer.put(*blocks[-1])
    assert caught.value.reason == reason
    assert files(tmp_path) == []


def test_a_tensor_that_is_no_scale_may_hold_anything(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a", [bsformat.Tensor("mask", (2,), "F32")]) as writer:
        writer.put(0, RAW_FORM, encoder.floats(float("-inf"), float("nan")))
        writer.finish([])
    assert first_problem((tmp_path / "a").read_bytes()) is None


@pytest.mark.parametrize(
    ("reason", "order"),
    [
        ("index-missing", [*ORDER, (5, 0.1)]),
        ("index-chain", [*ORDER, (7, 0.1)]),
        ("index-chain", [(-1, 9.0), *ORDER]),
        ("index-worth", [*ORDER[:-1], (5, float("nan"))]),
        ("index-worth", [*ORDER[:-1], (5, -1.0)]),
        ("index-worth", [*ORDER[:-1], (5, float("inf"))]),
        ("index-level", [(0, 1.0), *ORDER]),  # chain 0 is raw
    ],
)
def test_finish_refuses_an_order(tmp_path: Path, reason: str, order: list[tuple[int, float]]) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()) as writer:
        for block in small_blocks():
            writer.put(*block)
        with pytest.raises(FormatError) as caught:
            writer.finish(order)
    assert caught.value.reason == reason
    assert files(tmp_path) == []


def test_finish_refuses_a_raw_tensor_without_its_block(tmp_path: Path) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()) as writer:
        for block in small_blocks()[1:]:
            writer.put(*block)
        with pytest.raises(FormatError) as caught:
            writer.finish(ORDER)
    assert caught.value.reason == "index-missing"
    assert "norm.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("metadata-value", {"aliases": {"a": "nothing"}}),
        ("metadata-duplicate", {"aliases": {"mask": "w.weight"}}),
        ("metadata-name", {"aliases": {"": "w.weight"}}),
        ("metadata-msgpack", {"extra": {"loss": float("nan")}}),
        ("metadata-msgpack", {"extra": {"array": np.zeros(3)}}),
        ("metadata-msgpack", {"extra": {1: 2}}),
        ("superblock-invalid", {"extra": {"compresses": bytes(1 << 20)}}),
        ("metadata-value", {"curves": [bsformat.Curve("ppl", "t", 1, 1, 1.0, ((4, 1.0), (2, 2.0)))]}),
    ],
)
def test_finish_refuses(tmp_path: Path, reason: str, options: dict[str, Any]) -> None:
    """No file is ever written that the reader would refuse."""
    with bsformat.Writer(tmp_path / "a", small_tensors()) as writer:
        for block in small_blocks():
            writer.put(*block)
        with pytest.raises(FormatError) as caught:
            writer.finish(ORDER, **options)
    assert caught.value.reason == reason
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../a", "/a", "a//b", "a\\b", "a\0"])
def test_finish_refuses_an_attachment_that_leaves_its_folder(tmp_path: Path, name: str) -> None:
    with bsformat.Writer(tmp_path / "a", small_tensors()[:1]) as writer:
        writer.put(*small_blocks()[0])
        writer.attach(name, b"x")
        with pytest.raises(FormatError) as caught:
            writer.finish([])
    assert caught.value.reason == "metadata-name"
    assert files(tmp_path) == []


@pytest.mark.parametrize("size", [1 << 16, 70_000, 1 << 20, 5 << 20])
def test_what_compresses_beyond_the_limit_is_still_readable(tmp_path: Path, size: int) -> None:
    """A bias of zeros, an attachment of blanks: zstd packs them tighter than a reader may believe."""
    with bsformat.Writer(tmp_path / "a", [bsformat.Tensor("bias", (size,), "U8")]) as writer:
        writer.put(0, RAW_FORM, bytes(size))
        writer.attach("blank", b" " * size)
        writer.finish([])
    with bsformat.open(tmp_path / "a") as container:
        assert bsformat.verify(container).ok
        assert container.read_block(0) == bytes(size)
        assert container.attachment("blank") == b" " * size


def test_memory_is_bounded_by_the_largest_block(tmp_path: Path) -> None:
    """256 MiB in 64 blocks; 4 MiB each."""
    program = (
        "import resource\n"
        "import bsformat\n"
        "form = bsformat.Form('sign', rank=1, factors='F8_E4M3')\n"
        "rows, columns = 2048, 16384\n"
        "tensors = [bsformat.Tensor('r', (rows,), 'F32'), bsformat.Tensor('c', (columns,), 'F32'),\n"
        "           bsformat.Tensor('w', (rows, columns), 'F16', group_rows=rows, row_scale=0, col_scale=1)]\n"
        "payload = bytes(rows * columns // 8 + rows + columns + 4)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "with bsformat.Writer('a', tensors) as writer:\n"
        "    writer.put(0, bsformat.Form('raw'), bytes(4 * rows))\n"
        "    writer.put(1, bsformat.Form('raw'), bytes(4 * columns))\n"
        "    for _ in range(64):\n"
        "        writer.put(2, form, payload)\n"
        "    writer.finish([(2, 1.0)] * 64)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    size = (tmp_path / "a").stat().st_size
    (tmp_path / "a").unlink()
    assert size > 256 << 20
    assert int(done.stdout) < 48 << 10  # ru_maxrss counts KiB


# --- rewrite --------------------------------------------------------------------------------------------------------


def test_rewrite_over_itself(small: Path) -> None:
    curve = bsformat.Curve("perplexity", "wiki", 2048, 1024, 25.0, ((4, 1e6), (9, 30.0)))
    with bsformat.open(small) as container:
        payloads = [container.read_block(i) for i in range(len(container))]
        root = bsformat.rewrite(container, small, curves=[curve], extra={"a": 1})
        assert container.root != root
        assert container.read_block(8) == payloads[8]  # the file that was opened is still there to be read
    with bsformat.open(small, root=root) as again:
        assert again.metadata.curves == (curve,)
        assert again.metadata.extra == {"a": 1}
        assert again.metadata.aliases == {"head.weight": "w.weight"}
        assert again.attachment("tokenizer/vocab.json") == VOCABULARY
        assert [again.read_block(i) for i in range(len(again))] == payloads
        assert bsformat.verify(again).ok


def test_rewrite_without_changes_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as container:
        assert bsformat.rewrite(container, tmp_path / "b") == container.root
    assert (tmp_path / "b").read_bytes() == small.read_bytes()


def test_rewrite_in_another_order(small: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as container:
        blocks = {
            (int(container.index.chain[i]), int(container.index.level[i])): container.read_block(i)
            for i in range(len(container))
        }
        order = [(5, 3.0), (6, 2.0), (4, 1.0), (6, 0.5), (4, 0.25)]
        root = bsformat.rewrite(container, tmp_path / "b", order=order)
    with bsformat.open(tmp_path / "b", root=root) as again:
        first = again.index.required
        rows = list(
            zip(again.index.chain.tolist(), again.index.level.tolist(), again.index.worth.tolist(), strict=True)
        )
        assert rows[first:] == [(5, 0, 3.0), (6, 0, 2.0), (4, 0, 1.0), (6, 1, 0.5), (4, 1, 0.25)]
        assert all(again.read_block(i) == blocks[chain, level] for i, (chain, level, _) in enumerate(rows))
        assert bsformat.verify(again).ok


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([4, 4, 6, 6], "the order names 4 of 5 residual blocks"),
        ([4, 4, 6, 6, 6], "the file has no level 2 of chain 6"),
        ([4, 4, 6, 6, 5, 5], "the file has no level 1 of chain 5"),
        ([0, 4, 4, 6, 6], "the file has no level 0 of chain 0"),
    ],
)
def test_rewrite_refuses_an_order_of_other_blocks(small: Path, tmp_path: Path, order: list[int], message: str) -> None:
    with bsformat.open(small) as container, pytest.raises(bsformat.BstkError, match=message) as caught:
        bsformat.rewrite(container, tmp_path / "b", order=[(chain, 1.0) for chain in order])
    assert caught.value.reason == "index-missing"
    assert not (tmp_path / "b").exists()


def test_a_writer_that_does_not_compress(tmp_path: Path) -> None:
    for compress, codec in ((True, "zstd"), (False, "none")):
        with bsformat.Writer(tmp_path / codec, [bsformat.Tensor("w", (4096,), "F16")], compress=compress) as writer:
            writer.put(0, bsformat.Form("raw"), bytes(8192))
            writer.finish([])
        with bsformat.open(tmp_path / codec) as container:
            assert (container.block(0).form.codec, container.read_block(0)) == (codec, bytes(8192))


def test_levels_that_the_order_leaves_out_are_refused(tmp_path):
    tensors = [
        bsformat.Tensor("w#row_scale", (8,), "F16"),
        bsformat.Tensor("w#col_scale", (8,), "F16"),
        bsformat.Tensor("w", (8, 8), "F16", group_rows=8, row_scale=0, col_scale=1),
    ]
    with bsformat.Writer(tmp_path / "a.bstk", tensors) as writer:
        for chain in (0, 1):
            writer.put(chain, bsformat.Form("raw"), b"\0\x3c" * 8)
        for _ in range(2):
            writer.put(2, bsformat.Form("sign", rank=1, factors="F16"), bytes(8 + 32))
        with pytest.raises(bsformat.BstkError, match="1 of the 2 levels of w") as caught:
            writer.finish([(2, 1.0)])
    assert caught.value.reason == "index-missing"
    assert not any(tmp_path.iterdir())


PACKED = [
    bsformat.Tensor("w#row_scale", (8,), "F16"),
    bsformat.Tensor("w#col_scale", (9,), "F16"),
    bsformat.Tensor("w", (8, 9), "F16", group_rows=8, row_scale=0, col_scale=1),
]
PLANE_FORM = bsformat.Form("plane")
LOWRANK_FORM = bsformat.Form("lowrank", rank=2, factors="F16")
SPARSE_FORM = bsformat.Form("sparse")
ENTRY = sparse.join(8, 1.0, np.array([3]), np.array([8]), np.array([0x38]))


def test_the_other_kinds_are_written_as_they_come(tmp_path: Path) -> None:
    blocks = [
        (F16_FORM, sign_payload(F16_FORM, 8, 9, 0)),
        (PLANE_FORM, bytes(16)),
        (SPARSE_FORM, ENTRY),
        (LOWRANK_FORM, bytes(2 * 2 * 17)),
        (F16_FORM, sign_payload(F16_FORM, 8, 9, 1)),
        *[(PLANE_FORM, bytes(16))] * 15,
    ]
    with bsformat.Writer(tmp_path / "a.bstk", PACKED) as writer:
        for chain, size in ((0, 8), (1, 9)):
            writer.put(chain, RAW_FORM, b"\0\x3c" * size)
        for form, data in blocks:
            writer.put(2, form, data)
        writer.finish([(2, 1.0)] * len(blocks))
    with bsformat.open(tmp_path / "a.bstk") as container:
        assert bsformat.verify(container).ok
        assert [(container.block(2 + i).form, container.read_block(2 + i)) for i in range(len(blocks))] == blocks
        assert len(container.metadata.forms) == 5  # raw and the four others, each once


@pytest.mark.parametrize(
    ("before", "form", "data", "reason"),
    [
        ([], PLANE_FORM, bytes(16), "index-plane"),
        ([(SPARSE_FORM, ENTRY)], PLANE_FORM, bytes(16), "index-plane"),
        ([(LOWRANK_FORM, bytes(68))], PLANE_FORM, bytes(16), "index-plane"),
        ([(F16_FORM, bytes(16 + 68)), *[(PLANE_FORM, bytes(16))] * 15], PLANE_FORM, bytes(16), "index-plane"),
        ([(F16_FORM, bytes(16 + 68))], PLANE_FORM, bytes(17), "index-block-length"),
        ([(F16_FORM, bytes(16 + 68))], PLANE_FORM, b"\0\2" * 8, "block-padding"),
        ([], LOWRANK_FORM, bytes(67), "index-block-length"),
        ([], LOWRANK_FORM, b"\0\x7c" * 34, "block-values"),
        ([], SPARSE_FORM, ENTRY[:-1], "index-block-length"),
        ([], SPARSE_FORM, ENTRY[:-3], "index-block-length"),
        ([], SPARSE_FORM, ENTRY[:-3] + b"\x09\0\x38", "block-columns"),
        ([], SPARSE_FORM, ENTRY[:4] + b"\x01" + ENTRY[5:], "block-rows"),
        ([], SPARSE_FORM, ENTRY[:-1] + b"\x7f", "block-values"),
    ],
)
def test_put_refuses_blocks_of_the_other_kinds(
    tmp_path: Path, before: list[tuple[bsformat.Form, bytes]], form: bsformat.Form, data: bytes, reason: str
) -> None:
    with bsformat.Writer(tmp_path / "a.bstk", PACKED) as writer:
        for level in before:
            writer.put(2, *level)
        with pytest.raises(FormatError) as caught:
            writer.put(2, form, data)
    assert caught.value.reason == reason


def test_put_refuses_entries_of_a_matrix_with_too_many_columns(tmp_path: Path) -> None:
    wide = 65537
    tensors = [PACKED[0], bsformat.Tensor("c", (wide,), "F16"), bsformat.Tensor("w", (8, wide), "F16", 8, 0, 1)]
    with (
        bsformat.Writer(tmp_path / "a.bstk", tensors) as writer,
        pytest.raises(FormatError, match="65537 columns") as caught,
    ):
        writer.put(2, SPARSE_FORM, ENTRY)
    assert caught.value.reason == "index-form"
