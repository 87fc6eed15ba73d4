"""Makes the conformance vectors of ``bstk-v1.md``, or compares those that are there with what it would make.

    python spec/vectors/generate.py            # writes what is new; nothing is ever removed
    python spec/vectors/generate.py --check    # exit code 1 and a line for each difference

Nothing here depends on the version of a library, and nothing on a reader or writer of this repository: the bytes come
from ``make/file.py``, the expected values from the descriptions, ``make/rebuild.py`` and ``make/ecdsa.py``. Needs
``blake3``.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from make import (  # noqa: E402
    invalid_blocks,
    invalid_head,
    invalid_index,
    invalid_metadata,
    invalid_names,
    invalid_versions,
    invalid_volumes,
    signatures,
    transport,
    valid_features,
    valid_shapes,
    valid_volumes,
)
from make.bits import digest  # noqa: E402
from make.vector import Invalid, Valid  # noqa: E402

FOLDERS = ("valid", "invalid", "transport", "flips", "signatures")
#: The version of the specification that a vector came with: a released set is closed.
SINCE = "1.1"
FLIPPED = ("valid/smallest.bstk", "valid/packed-3x9.bstk", "valid/attachments.bstk", "valid/volumes-smallest.bstk")
#: A volume after the first that is flipped too, and the first one.
FLIPPED_VOLUME = ("valid/volumes-smallest.00002.bstk", "valid/volumes-smallest.bstk")


def valid() -> Iterator[Valid]:
    """All files that a reader must read."""
    for make in (valid_shapes.raw, valid_shapes.packed_shapes, valid_shapes.kinds, valid_shapes.rounding):
        yield from make()
    for make in (valid_features.metadata, valid_features.attachments, valid_features.frames):
        yield from make()
    for make in (valid_features.prefixes, valid_features.versions, valid_features.writers):
        yield from make()
    yield from valid_volumes.volumes()
    yield from valid_volumes.history()


def invalid() -> Iterator[Invalid]:
    """All objects that a reader must refuse."""
    yield from invalid_head.superblock()
    yield from invalid_head.sections()
    yield from invalid_versions.versions()
    for make in (invalid_metadata.msgpack, invalid_metadata.keys, invalid_metadata.tensors):
        yield from make()
    yield from invalid_metadata.containers()
    yield from invalid_names.names()
    yield from invalid_names.attachments()
    yield from invalid_names.attachment_frames()
    yield from invalid_index.index()
    yield from invalid_blocks.blocks()
    yield from invalid_volumes.volumes()
    yield from invalid_volumes.objects()


def text(value: Any, indent: int = 0) -> str:
    """JSON that people can read: what fits into a short line stands on one, and so does a map of plain values."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if (indent and len(line) <= 200) or not any(isinstance(item, (dict, list)) for item in items):
        return line
    pad = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        return "[" + pad + ("," + pad).join(text(item, indent + 1) for item in items) + f"\n{' ' * indent}]"
    pairs = (f"{json.dumps(key, ensure_ascii=False)}: {text(item, indent + 1)}" for key, item in value.items())
    return "{" + pad + ("," + pad).join(pairs) + f"\n{' ' * indent}}}"


def files() -> dict[str, bytes]:
    """Every file of the corpus but the list of them, by its path below this folder."""
    out: dict[str, bytes] = {}
    for folder, vectors in (("valid", valid()), ("invalid", invalid())):
        for vector in vectors:
            objects, facts = vector.make()
            out[f"{folder}/{vector.name}.json"] = (text(facts | {"objects": list(objects)}) + "\n").encode()
            for name, data in objects.items():
                if f"{folder}/{name}" in out:
                    raise ValueError(f"two objects are called {name}")
                out[f"{folder}/{name}"] = data
    for answers in (*transport.answers(), *transport.volume_answers()):
        out[f"transport/{answers['name']}.json"] = (text(answers) + "\n").encode()
    for signature in signatures.signatures():
        facts, made = signature.make(out)
        if f"signatures/{signature.name}.json" in out:
            raise ValueError(f"two signatures are called {signature.name}")
        out[f"signatures/{signature.name}.json"] = (text(facts) + "\n").encode()
        out |= {f"signatures/{name}": data for name, data in made.items()}
    for name in FLIPPED:
        facts = {"object": name, "bits": 8 * len(out[name]), "reasons": transport.flips(out[name])}
        out[f"flips/{Path(name).stem}.json"] = (text(facts) + "\n").encode()
    name, opened = FLIPPED_VOLUME
    # It holds a block of one byte, and nothing else.
    facts = {"object": name, "opened": opened, "bits": 8 * len(out[name]), "reasons": [["block-digest", 8]]}
    out[f"flips/{Path(name).stem}.json"] = (text(facts) + "\n").encode()
    return out


def listing(made: dict[str, bytes]) -> bytes:
    """``vectors.json``: how many vectors there are, and the digest of every file of them."""
    counts = {
        folder: sum(path.startswith(f"{folder}/") and path.endswith(".json") for path in made) for folder in FOLDERS
    }
    sums = {path: digest(data).hex() for path, data in sorted(made.items())}
    lines = ",\n".join(f"  {json.dumps(path)}: {json.dumps(value)}" for path, value in sums.items())
    head = text({"since": SINCE, "counts": counts}).removesuffix("\n}")
    return f'{head},\n "blake3": {{\n{lines}\n }}\n}}\n'.encode()


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description="Make the conformance vectors.")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    check = parser.parse_args().check
    made = files()
    made["vectors.json"] = listing(made)
    problems = []
    for path, data in made.items():
        place = HERE / path
        if check and (not place.is_file() or place.read_bytes() != data):
            problems.append(f"{path}: {'differs' if place.is_file() else 'is missing'}")
        elif not check:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    there = {p.relative_to(HERE).as_posix() for f in FOLDERS for p in (HERE / f).glob("*")}
    problems += [f"{path}: is not made by this program" for path in sorted(there - set(made))]
    sys.stdout.write("".join(line + "\n" for line in problems) or f"{len(made)} files\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
