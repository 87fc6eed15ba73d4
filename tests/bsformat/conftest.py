"""What the tests of the container share."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import bsformat
from tests.bsformat.encoder import Image, sample

Problem = bsformat.BstkError


def first_problem(data: bytes, volumes: Mapping[str, bytes] | None = None, **options: str) -> Problem | None:
    """What is wrong with a file in memory: what opening it raises, or the first thing that verifying it finds."""
    try:
        report = bsformat.verify(bsformat.MemorySource(data, "a.bstk", volumes), **options)
    except bsformat.BstkError as error:
        return error
    return report.problems[0] if report.problems else None


@pytest.fixture
def problem() -> Callable[..., Problem | None]:
    """`first_problem`."""
    return first_problem


@pytest.fixture
def image() -> Image:
    """A fresh copy of the sample file, taken apart."""
    return sample()


@pytest.fixture
def sealed(image: Image) -> bytes:
    """The bytes of the sample file."""
    return image.seal()


_CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
#: Texts in the sources that look like the code of a reason and are none.
_NO_REASONS = {
    "base-model",
    "content-length",
    "content-range",
    "keep-alive",
    "latin-1",
    "proxy-authorization",
    "retry-after",
    "utf-8",
}


def _is_reason(node: ast.AST) -> Iterator[str]:
    """The codes that one node of a syntax tree states: `reason=…`, `default_reason = …`, or any hyphenated text."""
    named = isinstance(node, ast.keyword) and node.arg == "reason"
    default = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "default_reason"
    if named or default:
        yield from (n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _CODE.fullmatch(node.value):
        yield node.value


@pytest.fixture(scope="session")
def reasons() -> frozenset[str]:
    """Every reason code that the sources of bsformat can give."""
    folder = Path(bsformat.__file__).parent
    trees = [ast.parse(path.read_text()) for path in folder.glob("*.py")]
    return frozenset(code for tree in trees for node in ast.walk(tree) for code in _is_reason(node)) - _NO_REASONS


def small_tensors() -> list[bsformat.Tensor]:
    """The tensors of the small model that the tests of the writer write."""
    return [
        bsformat.Tensor("norm.weight", (4,), "F32"),
        bsformat.Tensor("mask", (64, 64), "U8"),
        bsformat.Tensor("w.rows", (5,), "F32"),
        bsformat.Tensor("w.columns", (3, 10), "BF16"),
        bsformat.Tensor("w.weight", (5, 10), "F16", group_rows=2, row_scale=2, col_scale=3),
    ]


F16_FORM = bsformat.Form("sign", rank=2, factors="F16")
F8_FORM = bsformat.Form("sign", rank=1, factors="F8_E4M3")
RAW_FORM = bsformat.Form("raw")


def sign_payload(form: bsformat.Form, rows: int, columns: int, seed: int) -> bytes:
    """A payload of random signs and factors, its padding bits zero."""
    draw = np.random.default_rng(seed)
    signs = np.packbits(draw.integers(0, 2, (rows, columns), np.uint8), axis=1, bitorder="little").tobytes()
    count = (rows + columns) * form.rank
    if form.factors == "F16":
        return signs + draw.standard_normal(count).astype("<f2").tobytes()
    return signs + draw.integers(0, 0x7F, count, np.uint8).tobytes() + draw.random(form.rank, np.float32).tobytes()


def small_blocks() -> list[tuple[int, bsformat.Form, bytes]]:
    """(chain, form, payload) of every block of the small model: chains 4 to 6 are rows 0–1, 2–3 and 4 of w.weight."""
    raw = [
        (0, RAW_FORM, np.arange(4, dtype="<f4").tobytes()),
        (1, RAW_FORM, np.eye(64, dtype=np.uint8).tobytes()),
        (2, RAW_FORM, np.linspace(0.5, 2, 5, dtype="<f4").tobytes()),
        (3, RAW_FORM, (np.linspace(0.5, 2, 30, dtype="<f4").view("<u4") >> 16).astype("<u2").tobytes()),
    ]
    chains = [(4, 2, F16_FORM), (5, 2, F16_FORM), (6, 1, F16_FORM), (4, 2, F8_FORM), (6, 1, F8_FORM)]
    return raw + [(c, form, sign_payload(form, rows, 10, i)) for i, (c, rows, form) in enumerate(chains)]


ORDER = [(6, 5.0), (4, 4.0), (4, 3.0), (6, 2.0), (5, 0.5)]
VOCABULARY = b"".join(b"%d," % i for i in range(20_000))


def write_small(path: Path, *, blocks: list[tuple[int, bsformat.Form, bytes]] | None = None) -> str:
    """Write the small model and give its root."""
    with bsformat.Writer(path, small_tensors()) as writer:
        for chain, form, data in small_blocks() if blocks is None else blocks:
            writer.put(chain, form, data)
        writer.attach("config.json", b'{"model_type": "none"}')
        writer.attach("tokenizer/vocab.json", VOCABULARY)
        return writer.finish(ORDER, aliases={"head.weight": "w.weight"}, extra={"recipe": {"rank": [2, 1]}})


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of the small model."""
    write_small(tmp_path / "small.bstk")
    return tmp_path / "small.bstk"
