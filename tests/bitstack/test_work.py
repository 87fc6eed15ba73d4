"""The work folder: what it keeps, whom it refuses, and when it goes."""

import os
from pathlib import Path

import pytest
import torch

from bitstack.work import WorkFolder
from bsformat.errors import ModelError, WriteError

IDENTITY = {"model": "a", "recipe": {"ranks": (4, 2), "seed": 1}, "device": "cpu"}


def test_steps_are_kept(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2], dtype=torch.int64)}
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True) as work:
        assert not work.has("x.safetensors")
        work.save("x.safetensors", tensors, {"note": "hello"})
        work.save("none.safetensors", {})
        work.save_json("y.json", [1, 0.1, float("inf"), None])
        with work.array("z.bin", (2, 3), torch.bfloat16) as array:
            assert not work.has("z.bin")
            array.copy_(torch.arange(6).view(2, 3))
    with WorkFolder(tmp_path / "w", IDENTITY) as work:
        assert work.has("x.safetensors")
        loaded = work.load("x.safetensors")
        assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
        assert set(loaded) == set(tensors)
        assert work.load("none.safetensors") == {}
        assert work.load_json("y.json") == [1, 0.1, float("inf"), None]
        assert torch.equal(work.open_array("z.bin", (2, 3), torch.bfloat16), torch.arange(6).view(2, 3).bfloat16())
        work.drop("y.json")
        work.drop("y.json")
        assert not work.has("y.json")
    assert not (tmp_path / "w").exists()


def test_a_step_appears_when_it_is_complete(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "w", IDENTITY) as work:
        with pytest.raises(RuntimeError), work.array("z.bin", (4,), torch.float32):
            raise RuntimeError
        assert not work.has("z.bin")


def test_an_interruption_keeps_what_is_done(tmp_path: Path) -> None:
    def interrupted() -> None:
        with WorkFolder(tmp_path / "w", IDENTITY) as work:
            (tmp_path / "w" / "half.part").write_bytes(b"x")
            work.save_json("y.json", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(os.listdir(tmp_path / "w")) == ["lock", "manifest.json", "y.json"]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True):
        pass
    (tmp_path / "w" / "x.safetensors.part").write_bytes(b"half")
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True) as work:
        assert not work.file("x.safetensors.part").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "b"}, "another model"),
        ({"recipe": {"ranks": (4, 2), "seed": 2}}, "another recipe"),
        ({"model": "b", "device": "cuda"}, "another device, model"),
    ],
)
def test_the_work_of_another_packing(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True) as work:
        work.save_json("y.json", 1)
    with pytest.raises(WriteError, match=named) as caught:
        WorkFolder(tmp_path / "w", IDENTITY | changes)
    assert caught.value.reason == "work-folder"
    assert caught.value.where == str(tmp_path / "w")
    assert "--restart" in caught.value.message
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True) as work:  # it was left alone
        assert work.has("y.json")
    with WorkFolder(tmp_path / "w", IDENTITY | changes, restart=True, keep=True) as work:
        assert not work.has("y.json")
    with WorkFolder(tmp_path / "w", IDENTITY | changes) as work:
        assert not work.has("y.json")


def test_a_restart_discards_work_of_the_same_packing_too(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True) as work:
        work.save_json("y.json", 1)
    with WorkFolder(tmp_path / "w", IDENTITY, restart=True) as work:
        assert not work.has("y.json")


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, restart: bool) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(WriteError, match="other things in it") as caught:
        WorkFolder(tmp_path, IDENTITY, restart=restart)
    assert caught.value.reason == "work-folder"
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(WriteError, match="is no folder"):
        WorkFolder(tmp_path / "letter.txt", IDENTITY, restart=restart)


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, IDENTITY) as work:
        work.save_json("y.json", 1)
    assert not tmp_path.exists()


def test_nowhere(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot be written"):
        WorkFolder(tmp_path / "none" / "w", IDENTITY)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "w", IDENTITY, keep=True):
        with pytest.raises(WriteError, match="another process") as caught:
            WorkFolder(tmp_path / "w", IDENTITY)
        assert caught.value.reason == "work-folder-busy"
    with WorkFolder(tmp_path / "w", IDENTITY):
        pass


def test_a_model_that_cannot_be_packed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError), WorkFolder(tmp_path / "w", IDENTITY):
        raise ModelError("has no numbers", reason="weight-values")
    assert not (tmp_path / "w").exists()
