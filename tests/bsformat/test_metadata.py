"""The metadata section: what is encoded is decoded, whatever it is."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsformat import metadata, metadata_reader, strict
from bsformat.errors import FormatError
from bsformat.metadata import Attachment, Curve, Form, Metadata, Tensor, number_chains

quick = settings(deadline=None, derandomize=True, max_examples=60)

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
file_names = st.lists(
    st.text(st.characters(exclude_characters="\0/\\:", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | numbers
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
forms = st.one_of(
    st.builds(Form, st.sampled_from(["raw", "plane", "sparse"]), st.sampled_from(["none", "zstd"])),
    st.builds(
        Form,
        st.sampled_from(["sign", "lowrank"]),
        st.sampled_from(["none", "zstd"]),
        st.integers(1, 4096),
        st.sampled_from(["F16", "F8_E4M3"]),
    ),
)
attachments = st.one_of(
    st.binary(max_size=50).map(lambda data: Attachment("", len(data), data=data)),
    st.integers(1, 1 << 30).map(lambda n: Attachment("", n, "none", None, 0, n, bytes(32))),
    st.integers(1, 1 << 20).map(lambda n: Attachment("", 64 * n, "zstd", None, 5, n, bytes(range(32)))),
)


@st.composite
def all_tensors(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """Raw tensors of any shape, and packed ones with their scales."""
    found = draw(st.lists(names, unique=True, max_size=8))
    out: list[Tensor] = []
    while len(found) >= 3 and draw(st.booleans()):
        shape = tuple(draw(st.lists(st.integers(1, 50), min_size=2, max_size=4)))
        rows = Tensor("", shape, "F32").rows
        group = draw(st.integers(1, rows))
        each = draw(st.booleans())
        scales = st.sampled_from(["F32", "F16", "BF16"])
        n = len(out)
        out += [
            Tensor(found.pop(), (rows,), draw(scales)),
            Tensor(found.pop(), (-(-rows // group), shape[-1]) if each else (shape[-1],), draw(scales)),
            Tensor(
                found.pop(),
                shape,
                draw(st.sampled_from(["F64", "F32", "F16", "BF16"])),
                group,
                n,
                n + 1,
                len(shape) == 2 and draw(st.booleans()),
            ),
        ]
    for name in found:
        shape = tuple(draw(st.lists(st.integers(1, 1000), max_size=3)))
        out.append(Tensor(name, shape, draw(st.sampled_from(["F32", "I64", "BOOL", "U8", "F8_E4M3"]))))
    return number_chains(out)


@st.composite
def whole(draw: st.DrawFn) -> Metadata:
    tensors = draw(all_tensors())
    taken = {t.name for t in tensors}
    aliases = draw(
        st.dictionaries(names.filter(lambda n: n not in taken), st.sampled_from([t.name for t in tensors]), max_size=3)
        if tensors
        else st.just({})
    )
    found = draw(st.lists(file_names, unique=True, max_size=4))
    files = [draw(attachments) for _ in found]
    points = draw(st.dictionaries(st.integers(0, 1 << 22), numbers, max_size=5))
    return Metadata(
        writer=draw(names),
        tensors=tensors,
        forms=tuple(draw(st.lists(forms, max_size=4))),
        aliases=aliases,
        attachments=tuple(
            Attachment(n, f.length, f.codec, f.data, f.offset, f.stored, f.digest)
            for n, f in zip(found, files, strict=True)
        ),
        curves=(Curve(draw(names), draw(st.text(max_size=5)), 1, 2, draw(numbers), tuple(sorted(points.items()))),),
        extra=draw(st.dictionaries(names, values, max_size=3)),
    )


@quick
@given(whole())
def test_what_is_encoded_is_decoded(meta: Metadata) -> None:
    data = metadata.encode(meta)
    assert metadata_reader.decode(data, "here") == meta
    assert metadata.encode(metadata_reader.decode(data, "here")) == data


@quick
@given(whole(), st.data())
def test_a_cut_or_changed_section_is_decoded_or_refused(meta: Metadata, data: st.DataObject) -> None:
    """Nothing but a FormatError comes out, whatever one byte says."""
    encoded = bytearray(metadata.encode(meta))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    try:
        metadata_reader.decode(bytes(encoded), "here")
    except FormatError as error:
        assert error.where == "here"  # noqa: PT017
    with pytest.raises(FormatError):
        metadata_reader.decode(bytes(encoded[:at]), "here")


@quick
@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        metadata_reader.decode(data, "here")
    assert caught.value.reason in {"metadata-msgpack", "metadata-key"}


@quick
@given(st.dictionaries(names, values, max_size=4))
def test_strict_values_survive(value: dict[str, Any]) -> None:
    assert strict.unpack(strict.pack(value), "here") == value


@pytest.mark.parametrize(
    "value",
    [{"a": float("nan")}, {"a": float("inf")}, {"a": 1 << 64}, {"a": object()}, {"a": {1, 2}}, {"a": (1, 2)}],
    ids=["nan", "inf", "2^64", "object", "set", "tuple"],
)
def test_values_that_cannot_be_packed(value: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        strict.pack(value)
    assert caught.value.reason == "metadata-msgpack"


@pytest.mark.parametrize("depth", range(1, 20))
def test_both_sides_know_the_same_depth(depth: int) -> None:
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    if depth <= 16:
        assert strict.unpack(strict.pack(value), "here") == value
        return
    with pytest.raises(FormatError):
        strict.pack(value)
    with pytest.raises(FormatError):
        strict.unpack(msgpack.packb(value), "here")


def test_chains_are_numbered_in_order() -> None:
    tensors = number_chains(
        [
            Tensor("a", (10,), "F32"),
            Tensor("b", (10, 3), "F16", 4, 0, 0),
            Tensor("c", (), "F32"),
            Tensor("d", (2, 6, 3), "F16", 12, 0, 0),
            Tensor("e", (1,), "F32"),
        ]
    )
    assert [t.first_chain for t in tensors] == [0, 1, 4, 5, 6]
    assert [t.n_chains for t in tensors] == [1, 3, 1, 1, 1]
    assert Metadata("w", tensors, ()).n_chains == 7
    assert Metadata("w", (), ()).n_chains == 0
