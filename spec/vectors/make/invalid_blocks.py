"""Invalid vectors of the index (§5), of block payloads (§6) and of padding (§7.2)."""

from typing import Any

from .bits import ZSTD_MAGIC, digest, f16, f32, frame_blocks, frame_header
from .file import Block, File
from .invalid_head import FRAMES, patched
from .kinds import sparse, sparse_of
from .samples import ENTRIES, LOW, MASK, MASKED, NORM, PLANES, ROWS, SIGN, SIGN8, WEIGHT, M, N, sample, tall
from .vector import Change, Invalid, Refusals

LAST = 9


def row(number: int, **values: Any) -> Change:
    """Other values in one row of the index, or another payload."""
    return lambda file: [setattr(file.blocks[number], name, value) for name, value in values.items()]


def grown(number: int, more: int) -> Change:
    """A payload so many bytes longer, or shorter."""

    def change(file: File) -> None:
        data = file.blocks[number].data
        file.blocks[number].data = data + bytes(more) if more > 0 else data[:more]

    return change


def both(*changes: Change) -> Change:
    """One change after the other."""
    return lambda file: [change(file) for change in changes] and None


def index() -> list[Invalid]:
    """§5."""
    r = Refusals(sample)
    r.each(
        "index-length",
        "5",
        "index",
        empty=lambda f: setattr(f, "index", b""),
        half_of_the_count=lambda f: setattr(f, "index", bytes(15)),
        no_blocks=lambda f: setattr(f, "index", bytes(16)),
        a_row_too_few=lambda f: setattr(f, "rows", LAST),
        a_row_too_many=lambda f: setattr(f, "rows", LAST + 2),
        count_largest=lambda f: setattr(f, "rows", (1 << 64) - 1),
        count_wraps=lambda f: setattr(f, "rows", LAST + 1 + (1 << 62)),
        count_beyond_the_limit=lambda f: setattr(f, "rows", (1 << 22) + 1),
        byte_more=lambda f: setattr(f, "index", f.index_bytes() + b"\0"),
        byte_less=lambda f: setattr(f, "index", f.index_bytes()[:-1]),
        more_required_than_there_are=lambda f: setattr(f, "required", LAST + 2),
        required_largest=lambda f: setattr(f, "required", (1 << 64) - 1),
    )
    r.each(
        "index-offset",
        "5",
        "offset",
        first_not_at_zero=row(0, offset=64),
        hole=lambda f: f.gaps.update({3: 64}),
        unaligned=lambda f: f.gaps.update({3: 8}),
        overlap=row(4, offset=192),
        two_swapped=lambda f: both(row(6, offset=f.offsets()[7]), row(7, offset=f.offsets()[6]))(f),
        beyond_the_file=row(LAST, offset=1 << 40),
        wraps=row(LAST, offset=(1 << 64) - 64),
        largest=row(LAST, offset=(1 << 64) - 1),
        stored_zero=row(LAST, stored=0),
        stored_a_byte_more=lambda f: row(LAST, stored=len(f.blocks[LAST].data) + 1)(f),
        stored_a_byte_less=lambda f: row(LAST, stored=len(f.blocks[LAST].data) - 1)(f),
        stored_beyond_the_limit=row(LAST, stored=(1 << 40) + 1),
        stored_largest=row(LAST, stored=(1 << 64) - 1),
        length_zero=row(LAST, length=0),
        length_beyond_the_limit=row(LAST, length=(1 << 40) + 1),
        length_largest=row(LAST, length=(1 << 64) - 1),
        byte_after_the_last_block=lambda f: f.gaps.update({LAST + 1: 1}),
        padding_after_the_last_block=lambda f: f.gaps.update({LAST + 1: 64}),
        empty_block_between=lambda f: f.blocks.insert(4, Block(WEIGHT, 0, SIGN, b"")),
    )
    r.each("index-chain", "5", "chain", one_beyond=row(LAST, chain=5), largest=row(LAST, chain=(1 << 32) - 1))
    r.each(
        "index-form", "5", "form", one_beyond=row(LAST, form=7), largest=row(LAST, form=0xFFFF),
        raw_in_a_packed_tensor=row(LAST, form=0), sign_in_a_raw_tensor=row(0, form=SIGN),
        plane_in_a_raw_tensor=row(0, form=PLANES), sparse_in_a_raw_tensor=row(0, form=ENTRIES),
        lowrank_in_a_raw_tensor=row(0, form=LOW), sparse_of_65537_columns=_wide,
    )  # fmt: skip
    r.each(
        "index-worth", "5", "worth", nan=row(4, worth=float("nan")), infinite=row(4, worth=float("inf")),
        negative=row(4, worth=-1.0), nan_of_a_raw_block=row(0, worth=float("nan")),
    )  # fmt: skip
    r.each(
        "index-level",
        "5",
        "level",
        starts_at_one=lambda f: [b.__setattr__("level", b.level + 1) for b in f.blocks[4:]],
        repeats=row(5, level=0),
        skips=row(LAST, level=6),
        largest=row(LAST, level=0xFFFF),
        order_broken=both(row(4, level=1), row(5, level=0)),
        second_block_of_a_raw_tensor=lambda f: f.blocks.insert(4, Block(NORM, 1, 0, f32(1, 2, 3, 4))),
        raw_block_twice=lambda f: f.blocks.insert(1, Block(NORM, 0, 0, f32(1, 2, 3, 4))),
    )
    r.each("index-missing", "5", "missing", raw_block=_without(0), scale_vector=_without(2))
    r.each(
        "index-order", "5", "order", raw_after_others=lambda f: f.blocks.append(f.blocks.pop(0)) or setattr(f, "required", 4),
        raw_not_required=lambda f: setattr(f, "required", 3), nothing_required=lambda f: setattr(f, "required", 0),
    )  # fmt: skip
    r.each(
        "index-block-length",
        "5",
        "length",
        sign_byte_more=grown(5, 1),
        sign_byte_less=grown(5, -1),
        raw_byte_more=grown(0, 1),
        raw_byte_less=grown(0, -1),
        of_another_form=row(5, form=SIGN),
        of_no_codec_is_not_stored=lambda f: row(5, length=len(f.blocks[5].data) - 1)(f),
        decoded_longer=row(1, length=101),
        bomb=_bomb,
        plane_byte_more=grown(6, 1),
        plane_with_factors=lambda f: row(6, data=f.blocks[4].data)(f),
        lowrank_byte_more=grown(LAST, 1),
        lowrank_with_signs=lambda f: row(LAST, data=f.blocks[4].data)(f),
        sparse_byte_more=grown(8, 1),
        sparse_two_bytes_more=grown(8, 2),
        sparse_byte_less=grown(8, -1),
        sparse_without_entries=row(8, data=sparse_of(1.0, [0], [0] * M, [], b"")),
        sparse_shorter_than_its_rows=grown(8, -13),
        sparse_of_one_byte=row(8, data=b"\0"),
        sparse_of_more_entries_than_elements=row(
            8, data=sparse_of(1.0, [0], [0] * M, list(range(M * N + 1)), bytes(M * N + 1))
        ),
    )
    planes = lambda *forms: lambda f: _chain(f, forms)  # noqa: E731
    r.each(
        "index-plane", "5", "plane", first=planes(PLANES, SIGN), alone=planes(PLANES), after_sparse=planes(SIGN, ENTRIES, PLANES),
        after_lowrank=planes(SIGN, LOW, PLANES), after_plane_and_sparse=planes(SIGN, PLANES, ENTRIES, PLANES),
        sixteenth=planes(SIGN, *[PLANES] * 16),
    )  # fmt: skip
    r.asked("index-missing", "9.3", "level-not-there", {"level": [WEIGHT, 6]}, opens=True)
    return list(r)


def _without(number: int) -> Change:
    def change(file: File) -> None:
        del file.blocks[number]
        file.curves = []

    return change


def _wide(file: File) -> None:
    columns = 65537
    file.tensors[3] |= {"shape": [columns], "dtype": "F32"}
    file.tensors[WEIGHT] |= {"shape": [1, columns], "group_rows": 1}
    file.tensors[ROWS]["shape"] = [1]
    file.blocks[ROWS].data = f32(1.0)
    # Runs of 512, so that the frame stays within the limit of expansion.
    ones = bytes([0x3F]) * (4 * columns)
    stored = ZSTD_MAGIC + frame_header(len(ones)) + frame_blocks(ones, 512)
    file.blocks[3:] = [
        Block(3, 0, 1, ones, stored_data=stored),
        Block(WEIGHT, 0, ENTRIES, sparse(1.0, 1, {(0, 5): 0x38}), 1.0),
    ]
    file.curves = []


def _bomb(file: File) -> None:
    file.tensors[MASKED]["shape"] = [1000, 200]
    file.blocks[1].data = bytes(200_000)


def _chain(file: File, forms: tuple[int, ...]) -> None:
    data = {SIGN: 4, SIGN8: 5, PLANES: 6, ENTRIES: 8, LOW: LAST}
    kept = {form: file.blocks[number].data for form, number in data.items()}
    file.blocks[4:] = [Block(WEIGHT, level, form, kept[form], 1.0) for level, form in enumerate(forms)]
    file.curves = []


# --- payloads -------------------------------------------------------------------------------------------------------


def with_bit(number: int, byte: int, bit: int) -> Change:
    """One more bit set in a payload."""

    def change(file: File) -> None:
        data = file.blocks[number].data
        file.blocks[number].data = patched(data, byte, bytes([data[byte] | 1 << bit]))

    return change


def with_bytes(number: int, at: int, new: bytes) -> Change:
    """Other bytes within a payload; ``at`` below 0 counts from its end."""

    def change(file: File) -> None:
        data = file.blocks[number].data
        file.blocks[number].data = patched(data, at if at >= 0 else len(data) + at, new)

    return change


NAN32, NAN16 = b"\x01\x00\xa0\x7f", b"\x01\x7d"


def blocks() -> list[Invalid]:
    """§6 and §7.4."""
    r = Refusals(sample)
    signs = 2 * M
    r.each(
        "block-digest",
        "7.2",
        "digest",
        opens=True,
        zero=row(4, digest=bytes(32)),
        of_another_block=lambda f: row(4, digest=digest(f.blocks[5].data))(f),
        of_the_payload_and_not_of_the_stored_bytes=row(1, digest=digest(MASK)),
    )
    for name, make in FRAMES.items():
        r.each("block-codec", "8.3", "block-frame", opens=True, **{name: row(1, stored_data=make(MASK))})
    for number, what in ((4, "sign"), (5, "sign8"), (6, "plane")):
        for which in range(M):
            bit = (2, 7, 5)[which]
            change = {f"row_{which}_bit_{bit}": with_bit(number, 2 * which + 1, bit)}
            r.each("block-padding", "6.2", f"padding-bit-{what}", opens=True, **change)
    r.each(
        "block-values",
        "6",
        "value",
        opens=True,
        u_nan=with_bytes(4, signs, NAN16),
        u_infinite=with_bytes(4, signs + 4, f16(float("inf"))),
        v_last_infinite=with_bytes(4, -2, f16(float("-inf"))),
        u_e4m3_7f=with_bytes(5, signs, b"\x7f"),
        v_e4m3_ff=with_bytes(5, -9, b"\xff"),
        scale_nan=with_bytes(5, -8, NAN32),
        scale_infinite=with_bytes(5, -4, f32(float("inf"))),
        row_scale_nan=row(2, data=f32(1.0) + NAN32 + f32(1.0)),
        col_scale_infinite=row(3, data=f16(*[1.0] * 9, float("-inf"))),
        sparse_7f=row(8, data=sparse(1.0, M, {(0, 1): 0x38, (1, 1): 0x7F})),
        sparse_ff=row(8, data=sparse(1.0, M, {(0, 1): 0xFF})),
        sparse_scale_nan=row(8, data=sparse(float("nan"), M, {(0, 1): 0x38})),
        sparse_scale_infinite=row(8, data=sparse(float("-inf"), M, {(0, 1): 0x38})),
        lowrank_u_nan=with_bytes(LAST, 0, NAN16),
        lowrank_v_infinite=with_bytes(LAST, 2 * M, f16(float("inf"))),
    )
    entries = lambda *arrays: row(8, data=sparse_of(0.5, *arrays, b"\x38\xb0\x7e"))  # noqa: E731
    r.each(
        "block-rows", "6.6", "rows", opens=True, start_not_zero=entries([1], [0, 2, 2], [3, 9, 0]),
        start_largest=entries([(1 << 32) - 1], [0, 2, 2], [3, 9, 0]), first_offset_not_zero=entries([0], [1, 2, 2], [3, 9, 0]),
        falling=entries([0], [0, 2, 1], [3, 9, 0]), beyond_the_entries=entries([0], [0, 2, 4], [3, 9, 0]),
        far_beyond_the_entries=entries([0], [0, 2, 0xFFFF], [3, 9, 0]),
    )  # fmt: skip
    r.each(
        "block-columns", "6.6", "columns", opens=True, repeated=entries([0], [0, 2, 2], [3, 3, 0]),
        falling=entries([0], [0, 2, 2], [9, 3, 0]), falling_in_the_last_row=entries([0], [0, 0, 1], [3, 9, 0]),
        one_beyond=entries([0], [0, 2, 2], [3, N, 0]), last_beyond=entries([0], [0, 2, 2], [3, 9, N]),
        largest=entries([0], [0, 2, 2], [3, 0xFFFF, 0]),
    )  # fmt: skip
    last_of_tensor = lambda f: patched(f.seal(), len(f.seal()) - len(f.blocks[LAST].data) - 1, b"\1")  # noqa: E731
    r.each(
        "padding",
        "7.2",
        "padding",
        opens=True,
        between_blocks=last_of_tensor,
        all_of_it=lambda f: setattr(f, "fill", b"\xff"),
        after_the_attachments=_dirty_after_attachments,
    )
    return [*r, *tiles()]


def _dirty_after_attachments(file: File) -> bytes:
    data = file.seal()
    first = len(data) - file.offsets()[-1] - len(file.blocks[LAST].data)
    return patched(data, first - 1, b"\x80")


def tiles() -> list[Invalid]:
    """Sparse blocks of more than one tile."""
    r = Refusals(tall)

    def arrays(starts: list[int], changed: dict[int, int]) -> Change:
        usual = {0: 0, 64: 0, 128: 0, 129: 0} | changed
        offsets = [usual.get(at, 1) for at in range(130)]
        return lambda f: row(2, data=sparse_of(0.25, starts, offsets, [1, 0, 4], b"\x38\x40\xc0"))(f)

    r.each(
        "block-rows", "6.6", "tiles", opens=True, tile_before_the_last=arrays([0, 1, 0], {}),
        tile_within_the_last=arrays([0, 0, 2], {}), tile_beyond_the_entries=arrays([0, 1, 4], {}),
        first_offset_of_a_tile_not_zero=arrays([0, 0, 2], {64: 1, **dict.fromkeys(range(65, 128), 2)}),
    )  # fmt: skip
    return list(r)
