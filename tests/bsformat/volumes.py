"""A file of some hundred blocks in several volumes, for the tests of them."""

import shutil
from pathlib import Path

import bsformat
from tests.bsformat.many import write_many

#: Bytes that a volume may have: the head and the attachment take most of the first.
SIZE = 70_000


def write_volumes(folder: Path, name: str = "model.bstk", *, seed: int = 1, size: int = SIZE) -> Path:
    """Write the file into a folder, in volumes; gives the path of the first one."""
    folder.mkdir(exist_ok=True, parents=True)
    whole = folder / "whole.bin"
    write_many(whole, seed=seed, n_tensors=90)
    bsformat.repack(whole, folder / name, volume_size=size)
    whole.unlink()
    return folder / name


def names_of(path: Path) -> list[str]:
    """The names of all volumes of a file, the first one included."""
    with bsformat.open(path) as container:
        return [volume.name for volume in container.volumes]


def joined(path: Path) -> bytes:
    """The volumes of a file, one after the other."""
    return b"".join((path.parent / name).read_bytes() for name in names_of(path))


def exchange(path: Path, one: int, two: int) -> None:
    """Let two volumes, counted from 0, take each other's names."""
    first, second = (path.parent / names_of(path)[number] for number in (one, two))
    aside = path.parent / "aside"
    shutil.move(first, aside)
    shutil.move(second, first)
    shutil.move(aside, second)
