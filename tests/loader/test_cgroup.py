"""What control groups leave, read from a tree of files as the kernel writes them, and from a real group."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from bitstack.loader import cgroup, free_bytes, free_memory
from bitstack.loader import free as freeing
from bitstack.loader.cgroup import Group, limited_groups

CPU = torch.device("cpu")
NO_LIMIT = 9223372036854771712


class Tree:
    """Folders of groups under a mount, and what /proc/self says of them."""

    def __init__(self, folder: Path, version: int, path: str, root: str = "/") -> None:
        self.mount, self.version = folder / "a mount", version
        self.proc = folder / "proc"
        self.proc.mkdir()
        (self.proc / "cgroup").write_text(
            f"4:memory:{path}\n2:cpu,cpuacct:/other\n" if version == 1 else f"0::{path}\n"
        )
        kind = "cgroup cgroup rw,memory" if version == 1 else "cgroup2 cgroup2 rw"
        mount = str(self.mount).replace(" ", "\\040")
        (self.proc / "mountinfo").write_text(
            "25 1 0:5 / /proc rw - proc proc rw\n33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
            f"35 31 0:32 {root} {mount} rw,relatime shared:3 - {kind}\n"
        )

    def group(self, path: str, stat: Mapping[str, int] | None = None, **files: object) -> Path:
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name} {value}\n" for name, value in (stat or {}).items())
        (folder / "memory.stat").write_text(lines)
        if self.version == 1:
            (folder / "memory.use_hierarchy").write_text("1\n")
        for name, value in files.items():
            (folder / f"memory.{name}").write_text(f"{value}\n")
        return folder

    @property
    def groups(self) -> list[Group]:
        return limited_groups(str(self.proc))


def test_every_group_on_the_way_up_counts_with_its_own_use(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2, "/pod/app/worker")
    tree.group("")
    tree.group("pod", max=1000, current=900)  # siblings hold most of it
    tree.group("pod/app", max="max", high="max", current=300)
    inner = tree.group("pod/app/worker", max=500, high=400, current=100)
    assert [(g.limit, g.used, g.free) for g in tree.groups] == [(400, 100, 300), (1000, 900, 100)]
    assert tree.groups[0].path == str(inner)


def test_version_1_counts_its_own_and_what_is_nested(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 1, "/a/b")
    stat = {"inactive_file": 1, "total_inactive_file": 40, "total_active_file": 30, "total_dirty": 5}
    stat |= {"total_writeback": 4, "total_mapped_file": 20, "total_shmem": 15, "active_file": 2}
    tree.group("", limit_in_bytes=NO_LIMIT, usage_in_bytes=10_000)
    tree.group("a", stat, limit_in_bytes=1000, usage_in_bytes=700)
    flat = tree.group("a/b", stat, limit_in_bytes=500, usage_in_bytes=200)
    (flat / "memory.use_hierarchy").write_text("0\n")
    # Pages of files but for those mapped, of which 15 may be shared memory, and those not on disk yet.
    assert [(g.limit, g.droppable) for g in tree.groups] == [(500, 3), (1000, 40 + 30 - (20 - 15) - 5 - 4)]
    assert [g.free for g in tree.groups] == [303, 356]


def test_page_cache_is_free_but_for_what_is_mapped_dirty_or_shared_memory(tmp_path: Path) -> None:
    tree = Tree(tmp_path, 2, "/app")
    stat = {"anon": 100, "file": 700, "shmem": 200, "inactive_file": 300, "active_file": 200, "slab_reclaimable": 7}
    stat |= {"file_mapped": 250, "file_dirty": 30, "file_writeback": 20}
    tree.group("app", stat, max=1000, current=820)
    (group,) = tree.groups
    assert group.droppable == 500 - (250 - 200) - 30 - 20 + 7
    assert group.free == 1000 - 820 + 407


def test_what_is_free_is_never_negative_nor_more_than_the_limit() -> None:
    assert Group("", 100, 150, 20).free == 0
    assert Group("", 100, 50, 200).free == 100


@pytest.mark.parametrize(
    ("path", "root", "place"),
    [
        ("/docker/abc/inner", "/docker/abc", "inner"),  # mounted from the container's own group
        ("/docker/abc", "/docker/abc", "."),
        ("/docker/abcdef", "/docker/abc", "."),  # another group that begins alike
        ("/../../elsewhere", "/", "."),  # outside of what a namespace shows
        ("/", "/", "."),
    ],
)
def test_inside_a_container(tmp_path: Path, path: str, root: str, place: str) -> None:
    tree = Tree(tmp_path, 2, path, root)
    folder = tree.group(place, max=1000, current=1)
    assert [Path(g.path) for g in tree.groups][:1] == [folder]


def test_what_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    assert limited_groups(str(tmp_path / "nowhere")) == []
    tree = Tree(tmp_path, 2, "/a/b")
    assert tree.groups == []  # no such folders
    tree.group("a", max="many", current=5)
    tree.group("a/b", max=100)  # no use
    assert tree.groups == []
    (tree.proc / "cgroup").write_text("nonsense\n")
    assert tree.groups == []
    (tree.proc / "cgroup").write_text("0::/a\n")
    (tree.proc / "mountinfo").write_text("a\n1 2 3 4 5 - \n")
    assert tree.groups == []


def test_both_versions_at_once(tmp_path: Path) -> None:
    """As systemd mounts them: controllers under version 1, and a tree of version 2 that limits nothing."""
    tree = Tree(tmp_path, 1, "/a")
    tree.group("a", limit_in_bytes=100, usage_in_bytes=10)
    (tmp_path / "unified").mkdir()
    with (tree.proc / "mountinfo").open("a") as file:
        file.write(f"41 31 0:38 / {tmp_path / 'unified'} rw - cgroup2 cgroup2 rw\n")
    with (tree.proc / "cgroup").open("a") as file:
        file.write("0::/\n")
    assert [g.free for g in tree.groups] == [90]


def test_the_narrowest_limit_is_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, 2, "/app")
    tree.group("app", max=5000, current=1000)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    monkeypatch.setattr(cgroup, "PROC", str(tree.proc))
    monkeypatch.setattr(freeing, "MEMINFO", str(meminfo))
    free = free_memory(CPU)
    assert free is not None
    assert (free.bytes, free.total, free.bound) == (3 << 10, 9 << 10, "system memory")
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    free = free_memory(CPU)
    assert free is not None
    assert (free.bytes, free.total, free.bound) == (4000, 5000, f"cgroup {tree.mount}/app")
    assert free.to_json() == {"bytes": 4000, "total": 5000, "bound": free.bound}
    assert free_bytes(CPU) == 4000
