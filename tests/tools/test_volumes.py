"""Files in volumes on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import bsformat
from tests.bsformat.test_signing import model_signing, save_key
from tests.bsformat.volumes import names_of
from tests.tools.conftest import Bstk

Failed = Callable[..., str]


@pytest.fixture
def cut(bstk: Bstk, tiny_bstk: Path, tmp_path: Path) -> Path:
    """The tiny model in volumes of half its size."""
    folder = tmp_path / "cut"
    folder.mkdir()
    size = tiny_bstk.stat().st_size // 2
    ended = bstk("repack", tiny_bstk, "-o", folder / "model.bstk", "--volume-size", str(size))
    assert (ended.code, ended.err) == (0, "")
    count = len(names_of(folder / "model.bstk"))
    assert count > 2
    assert f"volumes {count}, up to model.{count:05d}.bstk" in ended.out
    return folder / "model.bstk"


def test_inspect_says_where_the_file_lies(bstk: Bstk, cut: Path) -> None:
    page = bstk("inspect", cut).out
    names = names_of(cut)
    assert f"volumes       {len(names)}: model.bstk to {names[-1]}, at most " in page
    volumes = bstk("inspect", cut, "--json").json["volumes"]
    assert [volume["name"] for volume in volumes] == names
    assert [volume["length"] for volume in volumes] == [(cut.parent / name).stat().st_size for name in names]
    assert sum(volume["n_blocks"] for volume in volumes) == bstk("inspect", cut, "--json").json["n_blocks"]


def test_inspect_and_plan_read_the_first_volume_alone(bstk: Bstk, cut: Path) -> None:
    for name in names_of(cut)[1:]:
        (cut.parent / name).unlink()
    assert bstk("inspect", cut).code == 0
    assert bstk("plan", cut, "--budget", "60%").code == 0
    assert bstk("verify", cut, "--head").code == 0


def test_verify_names_the_volume(bstk: Bstk, cut: Path) -> None:
    assert bstk("verify", cut).code == 0
    (cut.parent / names_of(cut)[1]).unlink()
    ended = bstk("verify", cut, "--json")
    assert ended.code == 1
    assert [problem["reason"] for problem in json.loads(ended.out)["problems"]] == ["volume-missing"]
    assert "model.00002.bstk: volume 2 of" in bstk("verify", cut).out


def test_pack_in_volumes(bstk: Bstk, failed: Failed, tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed.bstk"
    options = ("--calib", text_file, "--recipe", "fast", "--device", "cpu")
    says = failed("pack", tiny_model, "-o", tmp_path / "a b.bstk", "--volume-size", "4GiB", *options)
    assert "volumes cannot be called 'a b.00002.bstk'" in says
    assert "no size" in bstk("pack", tiny_model, "-o", out, "--volume-size", "60%", *options).err
    ended = bstk("pack", tiny_model, "-o", out, "--volume-size", "150KiB", *options, "--json")
    assert ended.code == 0, ended.err
    names = names_of(out)
    assert ended.json["volumes"] == names
    assert len(names) > 1
    assert ended.json["size"] == sum((tmp_path / name).stat().st_size for name in names)
    assert bsformat.verify(out, root=ended.json["root"]).ok


def test_a_repository_keeps_the_volumes(bstk: Bstk, cut: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    for _ in range(2):  # the second time over what is there
        assert bstk("init-repo", cut, "-o", folder, "--license", "mit").code == 0
    assert {path.name for path in folder.glob("*.bstk")} == set(names_of(cut))
    for name in names_of(cut):
        assert (folder / name).read_bytes() == (cut.parent / name).read_bytes()
    part = tmp_path / "part"
    assert bstk("init-repo", cut, "-o", part, "--budget", "70%").code == 0
    assert [path.name for path in part.glob("*.bstk")] == ["model.bstk"]


def test_a_signature_holds_for_volumes_and_for_one_object(bstk: Bstk, cut: Path, tmp_path: Path) -> None:
    private, public = save_key(tmp_path, "key", ec.generate_private_key(ec.SECP256R1()))
    signature = tmp_path / "model.sig"
    ended = bstk("sign", cut, "--key", private, "-o", signature)
    assert ended.code == 0, ended.err
    assert all(f"  {name}" in ended.out for name in names_of(cut))
    demand = ("--signature", signature, "--public-key", public)
    one = tmp_path / "one.bstk"
    assert bstk("fetch", cut, "-o", one, *demand).code == 0
    for uri in (cut, one):
        assert bstk("verify", uri, *demand).code == 0
    done = model_signing("verify", "key", cut.parent, "--signature", signature, "--public_key", public)
    assert done.returncode == 0, done.stdout + done.stderr
    place = cut.parent / names_of(cut)[1]
    place.write_bytes(place.read_bytes()[:-1] + b"\1")
    done = model_signing("verify", "key", cut.parent, "--signature", signature, "--public_key", public)
    assert done.returncode == 1
    assert bstk("verify", cut, *demand).code == 1
