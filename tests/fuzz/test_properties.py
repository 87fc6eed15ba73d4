"""Properties of the parsers, whatever they are given; and files of any description, written, read and cut."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import bsformat
from bitstack.tools.fuzzing.examine import examine, held_to_limits
from bitstack.tools.fuzzing.parts import packed, split, unpacked
from bsformat import BstkError, Form, Tensor, metadata_reader, payload, sparse, strict
from bsformat.units import parse_size

quick = settings(deadline=None, derandomize=True, max_examples=150)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.binary(max_size=20)
)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = ("writer", "tensors", "forms", "aliases", "attachments", "curves", "extra")


def refusal(ask: Callable[[], object]) -> str | None:
    """The reason of the `BstkError` that it ends with, None without one."""
    try:
        ask()
    except BstkError as error:
        return error.reason
    return None


@quick
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_by_a_reason(data: bytes) -> None:
    assert held_to_limits(data, memory=False)[0] in {"not-bstk", "bad-transfer", "truncated"}


@quick
@given(st.dictionaries(texts, values, max_size=6))
def test_strict_messagepack_gives_back_what_was_packed(value: dict[str, Any]) -> None:
    assert strict.unpack(strict.pack(value), "") == value
    assert packed(unpacked(strict.pack(value))) == strict.pack(value)


@quick
@given(st.binary(max_size=60))
def test_any_bytes_are_messagepack_or_refused_as_no_map(data: bytes) -> None:
    assert refusal(lambda: strict.unpack(data, "")) in {None, "metadata-msgpack"}


@settings(quick, max_examples=60)
@given(st.fixed_dictionaries({key: values | st.lists(st.dictionaries(texts, values, max_size=4)) for key in KEYS}))
def test_any_metadata_is_read_or_refused(value: dict[str, Any]) -> None:
    data = msgpack.packb(value, unicode_errors="surrogatepass")
    reason = refusal(lambda: metadata_reader.decode(data, ""))
    assert reason is None or reason.startswith("metadata-")


@quick
@given(
    st.text(max_size=30) | st.from_regex(r"\s*[0-9]{0,400}\.?[0-9]{0,5}\s*([KMGTkmgt]?i?[Bb]?|%)\s*") | st.integers()
)
def test_any_size_is_bytes_or_refused(text: str | int) -> None:
    reason = refusal(lambda: parse_size(text, total=1000))
    assert reason in {None, "budget-invalid"}
    assert reason or parse_size(text, total=1000) >= 0


@st.composite
def described(draw: st.DrawFn) -> tuple[list[Tensor], list[list[Form]], int]:
    """A packed tensor of a few chains with its scales, and the forms of the levels of each chain."""
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 20))
    group = draw(st.integers(1, rows))
    dtype, scale = draw(st.sampled_from(["F64", "F32", "F16", "BF16"])), draw(st.sampled_from(["F32", "F16", "BF16"]))
    chains = -(-rows // group)
    column_shape = (chains, columns) if draw(st.booleans()) else (columns,)
    tensors = [
        Tensor("rows", (rows,), scale),
        Tensor("columns", column_shape, scale),
        Tensor("w", (rows, columns), dtype, group, 0, 1, draw(st.booleans())),
    ]
    form = st.one_of(
        st.builds(
            Form,
            st.sampled_from(["sign", "lowrank"]),
            st.just("none"),
            st.integers(1, 4),
            st.sampled_from(["F16", "F8_E4M3"]),
        ),
        st.just(Form("sparse")),
    )
    levels = draw(st.lists(st.lists(form, max_size=4), min_size=min(chains, 6), max_size=min(chains, 6)))
    return tensors, levels, draw(st.integers(0, 1 << 32))


def _payload(form: Form, tensor: Tensor, rows: int, random: np.random.Generator) -> bytes:
    if form.kind == "sparse":
        places = random.choice(rows * tensor.columns, max(1, rows * tensor.columns // 9), replace=False)
        return sparse.join(rows, 0.5, places // tensor.columns, places % tensor.columns, np.full(len(places), 0x38))
    parts: list[Any] = []
    for size in (rows, tensor.columns):
        shape = (size, form.rank)
        codes = random.integers(0, 0x70, shape).astype(np.uint8)
        parts.append(codes if form.factors == "F8_E4M3" else random.normal(size=shape).astype("<f2"))
    scale = random.normal(size=form.rank).astype("<f4") if form.factors == "F8_E4M3" else None
    signs = b""
    if form.has_signs:
        bits = random.integers(0, 2, (rows, tensor.columns)).astype(np.uint8)
        signs = payload.join_plane(np.packbits(bits, axis=1, bitorder="little"))
    return signs + payload.join_lowrank(parts[0], parts[1], scale)


@settings(quick, max_examples=60)
@given(described(), st.data())
def test_what_is_written_is_sound_and_so_is_every_prefix(
    description: tuple[list[Tensor], list[list[Form]], int], data: st.DataObject
) -> None:
    tensors, levels, seed = description
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bstk"
        with bsformat.Writer(path, tensors) as writer:
            for tensor in writer.tensors[:2]:
                writer.put(tensor.first_chain, Form("raw"), bytes(tensor.dense_bytes))
            w = writer.tensors[2]
            order = []
            for g, forms in enumerate(levels):
                for form in forms:
                    rows = min(w.group_rows, w.rows - g * w.group_rows)
                    writer.put(w.first_chain + g, form, _payload(form, w, rows, random))
                    order.append((w.first_chain + g, 1.0))
            writer.attach("config.json", b"{}")
            writer.finish(data.draw(st.permutations(order)))
        whole = path.read_bytes()
    assert examine(whole) is None
    parts = split(whole)
    assert parts is not None
    assert len(parts.rows) == 2 + len(order)
    parts.present = data.draw(st.integers(0, len(parts.rows)))
    assert examine(parts.seal()) == (None if parts.present >= 2 else "superblock-invalid")


@quick
@given(st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8) | st.none())
def test_any_budget_is_planned_or_refused(budget: Any) -> None:
    with bsformat.open(Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid" / "every-kind.bstk") as file:
        reason = refusal(lambda: file.plan(budget))
        assert reason in {None, "budget-invalid", "budget-too-small"}
        assert reason or file.plan(budget).resident_bytes <= parse_size(budget, file.total_bytes)
