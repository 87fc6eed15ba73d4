"""Invalid vectors of the index (§5)."""

from typing import Any

from .bits import ZSTD_MAGIC, f32, frame_blocks, frame_header
from .file import Block, File
from .kinds import sparse, sparse_of
from .samples import ENTRIES, LOW, MASKED, NORM, PLANES, ROWS, SIGN, SIGN8, WEIGHT, M, N, sample
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
        "index-form",
        "5",
        "form",
        one_beyond=row(LAST, form=7),
        largest=row(LAST, form=0xFFFF),
        raw_in_a_packed_tensor=row(LAST, form=0),
        sign_in_a_raw_tensor=row(0, form=SIGN),
        plane_in_a_raw_tensor=row(0, form=PLANES),
        sparse_in_a_raw_tensor=row(0, form=ENTRIES),
        lowrank_in_a_raw_tensor=row(0, form=LOW),
        sparse_of_65537_columns=_wide,
    )
    r.each(
        "index-worth",
        "5",
        "worth",
        nan=row(4, worth=float("nan")),
        infinite=row(4, worth=float("inf")),
        negative=row(4, worth=-1.0),
        nan_of_a_raw_block=row(0, worth=float("nan")),
    )
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
        "index-order",
        "5",
        "order",
        raw_after_others=lambda f: f.blocks.append(f.blocks.pop(0)) or setattr(f, "required", 4),
        raw_after_others_and_required=lambda f: f.blocks.append(f.blocks.pop(0)) or setattr(f, "required", LAST + 1),
        raw_not_required=lambda f: setattr(f, "required", 3),
        nothing_required=lambda f: setattr(f, "required", 0),
    )
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
        "index-plane",
        "5",
        "plane",
        first=planes(PLANES, SIGN),
        alone=planes(PLANES),
        after_sparse=planes(SIGN, ENTRIES, PLANES),
        after_lowrank=planes(SIGN, LOW, PLANES),
        after_plane_and_sparse=planes(SIGN, PLANES, ENTRIES, PLANES),
        sixteenth=planes(SIGN, *[PLANES] * 16),
    )
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
