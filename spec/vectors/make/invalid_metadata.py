"""Invalid vectors of the metadata (§4) but for names and attachments."""

import struct
from typing import Any

from .bits import ZSTD_MAGIC, Spliced, f32, frame_blocks, frame_header, pack
from .file import Block, File
from .samples import NORM, ROWS, WEIGHT, M, N, sample
from .vector import Change, Invalid, Refusals


def put(*path: Any, to: Any) -> Change:
    """Replace one value deep in the metadata."""

    def change(file: File) -> None:
        def edit(meta: dict[str, Any]) -> None:
            at: Any = meta
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = to

        file.change_meta = edit

    return change


def drop(*path: Any) -> Change:
    """Remove one key."""

    def change(file: File) -> None:
        def edit(meta: dict[str, Any]) -> None:
            at: Any = meta
            for key in path[:-1]:
                at = at[key]
            del at[path[-1]]

        file.change_meta = edit

    return change


def put_all(*path: Any, **values: Any) -> Change:
    """Replace several keys of one map."""

    def change(file: File) -> None:
        def edit(meta: dict[str, Any]) -> None:
            at: Any = meta
            for key in path:
                at = at[key]
            at.update(values)

        file.change_meta = edit

    return change


def extra(data: bytes) -> Change:
    """Splice bytes in as the value of ``extra``."""
    return lambda file: setattr(file, "extra", Spliced(data))


def whole(data: bytes) -> Change:
    """Other bytes for the whole decoded section."""
    return lambda file: setattr(file, "metadata", data)


def nested(depth: int) -> bytes:
    """So many arrays in each other."""
    return b"\x91" * (depth - 1) + b"\x90"


def msgpack() -> list[Invalid]:
    """§4.1."""
    r = Refusals(sample)
    good = lambda file: pack(file.meta())  # noqa: E731
    r.each(
        "metadata-msgpack",
        "4.1",
        "msgpack",
        empty=whole(b""),
        array=whole(b"\x90"),
        number=whole(b"\x01"),
        byte_c1=whole(b"\xc1"),
        map_after=lambda f: whole(good(f) + b"\x80")(f),
        byte_after=lambda f: whole(good(f) + b"\0")(f),
        cut=lambda f: whole(good(f)[:-1])(f),
        array_of_2_32=extra(b"\xdd\xff\xff\xff\xff"),
        map_of_2_32=extra(b"\xdf\xff\xff\xff\xff"),
        text_of_2_32=extra(b"\x81\xa1a\xdb\xff\xff\xff\xff"),
        bytes_of_2_32=extra(b"\x81\xa1a\xc6\xff\xff\xff\xff"),
        array_longer_than_the_rest=extra(b"\x81\xa1a\x9f"),
        c1_in_extra=extra(b"\x81\xa1a\xc1"),
        extension=extra(b"\x81\xa1a\xd4\x05x"),
        extension_8=extra(b"\x81\xa1a\xc7\x01\x05x"),
        timestamp=extra(b"\x81\xa1a\xd6\xff\0\0\0\1"),
        key_twice=extra(b"\x82\xa1a\x01\xa1a\x02"),
        key_twice_in_two_encodings=extra(b"\x82\xa1a\x01\xd9\x01a\x02"),
        key_twice_in_a_tensor=put(
            "tensors", NORM, to=Spliced(b"\x84\xa4name\xa4norm\xa5shape\x91\x04\xa5dtype\xa3F32\xa4name\xa4norm")
        ),
        integer_key=extra(b"\x81\x01\x01"),
        bytes_key=extra(b"\x81\xc4\x01a\x01"),
        array_key=extra(b"\x81\x91\x01\x01"),
        map_key=extra(b"\x81\x80\x01"),
        nil_key=extra(b"\x81\xc0\x01"),
        nan=extra(b"\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0"),
        infinity_32=extra(b"\x81\xa1a\xca\xff\x80\0\0"),
        nan_as_a_curve_value=put("curves", 0, "dense", to=Spliced(b"\xcb\x7f\xf8\0\0\0\0\0\0")),
        infinite_point=put("curves", 0, "points", to=[[4, Spliced(b"\xcb\x7f\xf0\0\0\0\0\0\0")]]),
        utf8=extra(b"\x81\xa1a\xa1\xff"),
        utf8_cut=extra(b"\x81\xa1a\xa1\xc3"),
        utf8_surrogate=extra(b"\x81\xa1a\xa3\xed\xa0\x80"),
        utf8_overlong=extra(b"\x81\xa1a\xa2\xc0\x80"),
        utf8_beyond_10ffff=extra(b"\x81\xa1a\xa4\xf4\x90\x80\x80"),
        utf8_in_a_key=extra(b"\x81\xa1\xff\x01"),
        utf8_in_a_tensor_name=put("tensors", NORM, "name", to=Spliced(b"\xa4nor\xff")),
        depth_17=extra(b"\x81\xa1a" + nested(15)),
        depth_3000=extra(b"\x81\xa1a" + nested(3000)),
        depth_of_maps=extra(b"\x81\xa1a" * 16 + b"\x80"),
    )
    return list(r)


#: Every map of the section: where one stands in the sample, and its keys.
MAPS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "metadata": ((), ("writer", "tensors", "forms", "aliases", "attachments", "curves", "extra")),
    "raw-tensor": (("tensors", NORM), ("name", "shape", "dtype")),
    "packed-tensor": (("tensors", WEIGHT), ("row_scale", "col_scale")),
    "form": (("forms", 2), ("kind", "codec", "rank", "factors")),
    "inline-attachment": (("attachments", 0), ("name", "length")),
    "attachment": (("attachments", 1), ("codec", "offset", "stored", "digest", "length")),
    "curve": (("curves", 0), ("metric", "text", "tokens", "window", "dense", "points")),
}


def keys() -> list[Invalid]:
    """Missing and unknown keys of every map, and a boolean in place of every value: a boolean is no integer."""
    r = Refusals(sample)
    for what, (path, names) in MAPS.items():
        for key in names:
            r.each("metadata-key", "4", f"{what}-lacks", **{key: drop(*path, key)})
            r.each("metadata-value", "4", f"{what}-boolean", **{key: put(*path, key, to=True)})
        r.each("metadata-key", "4", what, unknown_key=put(*path, "colour", to=1))
    r.each(
        "metadata-key",
        "4",
        "unknown",
        rank_of_a_raw_form=put("forms", 0, "rank", to=1),
        factors_of_a_plane=put("forms", 4, "factors", to="F16"),
        scale_of_a_raw_tensor=put("tensors", NORM, "row_scale", to=0),
        transposed_raw_tensor=put("tensors", NORM, "transposed", to=False),
        codec_of_an_inline_attachment=put("attachments", 0, "codec", to="none"),
    )
    return list(r)


def tensors() -> list[Invalid]:
    """§4.2 to §4.4 and §4.6."""
    r = Refusals(sample)
    raw = lambda **values: put_all("tensors", NORM, **values)  # noqa: E731
    packed = lambda **values: put_all("tensors", WEIGHT, **values)  # noqa: E731
    r.each(
        "metadata-value",
        "4.2",
        "tensor",
        no_map=put("tensors", NORM, to="norm"),
        dimension_zero=raw(shape=[0]),
        dimension_negative=raw(shape=[-4]),
        two_negative_dimensions=raw(shape=[-2, -2]),
        dimension_of_2_40=raw(shape=[1 << 40]),
        dimension_of_2_64=raw(shape=[(1 << 64) - 1]),
        dimension_float=raw(shape=[4.0]),
        dimension_boolean=raw(shape=[True, 4]),
        nine_dimensions=raw(shape=[1] * 8 + [4]),
        product_overflows=raw(shape=[1 << 32, 1 << 32]),
        product_overflows_to_four=raw(shape=[1 << 32, 1 << 32, 4]),
        product_of_eight=raw(shape=[(1 << 40) - 1] * 8),
        product_of_2_40_and_one=raw(shape=[1 << 20, (1 << 20) + 1]),
        dtype_unknown=raw(dtype="x-F12"),
        dtype_in_lower_case=raw(dtype="f32"),
        dtype_empty=raw(dtype=""),
        dtype_with_a_nul=raw(dtype="F32\0"),
        packed_integers=packed(dtype="I32"),
        packed_e4m3=packed(dtype="F8_E4M3"),
        packed_vector=packed(shape=[30]),
        packed_scalar=packed(shape=[]),
        group_rows_zero=packed(group_rows=0),
        group_rows_negative=packed(group_rows=-1),
        group_rows_beyond=packed(group_rows=M + 1),
        group_rows_huge=packed(group_rows=1 << 63),
        chains_beyond_the_limit=packed(shape=[(1 << 22) + 1, 10], group_rows=1),
        transposed_number=packed(transposed=1),
        row_scale_of_no_tensor=packed(row_scale=5),
        row_scale_negative=packed(row_scale=-1),
        row_scale_beyond=packed(row_scale=1 << 30),
        row_scale_beyond_the_limit=packed(row_scale=(1 << 30) + 1),
        row_scale_is_packed=packed(row_scale=WEIGHT),
        row_scale_of_another_shape=packed(row_scale=3),
        row_scale_of_two_dimensions=put("tensors", ROWS, "shape", to=[1, M]),
        row_scale_of_integers=put("tensors", ROWS, "dtype", to="I32"),
        row_scale_of_f64=put("tensors", ROWS, "dtype", to="F64"),
        col_scale_of_another_shape=packed(col_scale=ROWS),
        col_scale_transposed=put("tensors", 3, "shape", to=[N, 1]),
        col_scale_of_more_groups=put("tensors", 3, "shape", to=[2, N]),
    )

    def many_chains(file: File) -> None:
        def edit(meta: dict[str, Any]) -> None:
            meta["tensors"][ROWS]["shape"] = [1 << 21]
            more = meta["tensors"].pop() | {"shape": [1 << 21, N], "group_rows": 1}
            meta["tensors"] += [more | {"name": name} for name in ("w", "x", "y")]

        file.change_meta = edit

    def one_dimension(file: File) -> None:
        file.tensors[ROWS]["shape"] = [1]
        file.tensors[WEIGHT] |= {"shape": [N], "group_rows": 1}

    def packed_col_scale(file: File) -> None:
        file.tensors[WEIGHT]["col_scale"] = 6
        scale = file.tensors[WEIGHT] | {"name": "v", "shape": [1, N], "group_rows": 1, "row_scale": 5, "col_scale": 3}
        file.tensors += [{"name": "one", "shape": [1], "dtype": "F32"}, scale]

    r.each(
        "metadata-value",
        "4.2",
        "tensor",
        packed_with_one_dimension=one_dimension,
        col_scale_is_packed=packed_col_scale,
    )
    r.each("metadata-value", "4.2", "tensor", chains_beyond_the_limit_in_sum=many_chains)
    r.each(
        "metadata-value",
        "4.3",
        "form",
        no_map=put("forms", 0, to=1),
        rank_zero=put("forms", 2, "rank", to=0),
        rank_negative=put("forms", 2, "rank", to=-1),
        rank_beyond=put("forms", 2, "rank", to=4097),
        factors_of_f32=put("forms", 2, "factors", to="F32"),
        factors_empty=put("forms", 2, "factors", to=""),
        kind_is_bytes=put("forms", 2, "kind", to=b"sign"),
    )
    r.each(
        "metadata-value",
        "4.4",
        "alias",
        of_nothing=put("aliases", to={"a": "b"}),
        of_itself=put("aliases", to={"a": "a"}),
        of_an_alias=put("aliases", to={"a": "w", "b": "a"}),
        of_a_number=put("aliases", to={"a": 4}),
    )
    points = lambda value: put("curves", 0, "points", to=value)  # noqa: E731
    r.each(
        "metadata-value",
        "4.6",
        "curve",
        no_map=put("curves", 0, to=[]),
        points_fall=points([[6, 1.0], [4, 2.0]]),
        points_repeat=points([[4, 1.0], [4, 2.0]]),
        point_of_three=points([[4, 1.0, 2.0]]),
        point_of_text=points([["4", 1.0]]),
        point_no_array=points([4]),
        point_negative=points([[-1, 1.0]]),
        point_beyond_the_limit=points([[(1 << 22) + 1, 1.0]]),
        point_beyond_the_last_block=points([[4, 1.0], [11, 2.0]]),
        value_boolean=points([[4, True]]),
        tokens_negative=put("curves", 0, "tokens", to=-1),
        tokens_beyond_the_limit=put("curves", 0, "tokens", to=(1 << 50) + 1),
    )
    r.each(
        "codec-unknown",
        "8.3",
        "form",
        codec_unknown=put("forms", 1, "codec", to="x-codec"),
        codec_in_capitals=put("forms", 1, "codec", to="ZSTD"),
        codec_private=put("forms", 1, "codec", to="x-acme.lz4"),
        codec_empty=put("forms", 1, "codec", to=""),
        codec_unknown_and_unused=lambda f: f.forms.append({"kind": "raw", "codec": "x-codec"}),
    )
    r.each("codec-unknown", "8.3", "attachment", codec_unknown=put("attachments", 1, "codec", to="x-codec"))
    r.each(
        "kind-unknown",
        "8.2",
        "form",
        kind_unknown=put("forms", 2, "kind", to="x-kind"),
        kind_in_capitals=put("forms", 2, "kind", to="Sign"),
        kind_unknown_and_unused=lambda f: f.forms.append({"kind": "x-kind", "codec": "none"}),
    )
    return list(r)


def containers() -> list[Invalid]:
    """§7.6: more maps and arrays than a reader may be made to hold, in a section that compresses well."""
    # A map of itself; tensors, forms, aliases, attachments, curves; then the value of extra and its one array.
    many = b"\x81\xa1a\xdd" + struct.pack(">I", 1 << 21) + b"\x90" * (1 << 21)
    file = File(
        tensors=[{"name": "a", "shape": [], "dtype": "F32"}],
        forms=[{"kind": "raw", "codec": "none"}],
        blocks=[Block(0, 0, 0, f32(1))],
        extra=Spliced(many),
        # Blocks of 16 KiB, so that the section stays within the limit of expansion by bytes that are not used.
        metadata_frame=_runs,
    )
    shows = "2^21 empty arrays, each one byte of the section and many in memory"
    return [Invalid("containers-beyond-the-limit", "7.6", shows, "metadata-msgpack", file.seal())]


def _runs(data: bytes) -> bytes:
    return ZSTD_MAGIC + frame_header(len(data)) + frame_blocks(data, 512)
