"""One execution: everything that can be asked of a file, and what must hold whatever the file is."""

import resource
import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np

import bsformat
from bsformat import BstkError, Container, MemorySource, metadata, metadata_reader, payload, registry, superblock
from bsformat.rebuild import chain_values, round_to
from bsformat.verify import verify

#: Most memory that reading one file may take, as Python and numpy allocate it, in bytes: `BASE_BYTES`, and `TIMES` for
#: each byte of the file and of its decoded head. What a head may decode to is bounded too (spec §2): 256 times what is
#: stored, and 64 KiB. The base has room for the blocks of a small file, decoded and as numbers of 64 bits.
BASE_BYTES: Final = 2 << 20
TIMES: Final = 96
#: CPU seconds that one file may take.
DEADLINE: Final = 2.0
#: Elements of a tensor above which it is not rebuilt: its shape is what a rebuilt tensor takes, however small the file.
MAX_ELEMENTS: Final = 1 << 12


class Finding(Exception):
    """Something that must not be: ``kind`` is what, in one word."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def examine(data: bytes) -> str | None:
    """Open, plan, verify, read and rebuild.

    Returns:
        The reason of the first thing that is wrong with the file, None if it is sound.

    Raises:
        Finding: an answer that contradicts another one. Any other exception is a finding too.
    """
    try:
        with bsformat.open(MemorySource(data)) as file:
            return _asked(file)
    except BstkError as error:
        return _reason(error)


def _reason(error: BstkError) -> str:
    text = str(error)
    if "\n" in text or len(text) > 900 or not error.reason.replace("-", "").isalpha():
        raise Finding("message", repr(text))
    return error.reason


def _asked(file: Container) -> str | None:
    _plan(file)
    report = verify(file)
    reasons = [_reason(problem) for problem in report.problems]
    blocks = _read(file)
    # One object is all that there is here: of a first volume the others are missing, and that is said once of each.
    missing = sum(volume.n_blocks for volume in file.volumes[1:])
    _expect(sum(r.startswith("volume") for r in reasons) == len(file.volumes[1:]), "volumes", reasons)
    damaged = sum(b is None for b in blocks) - missing
    _expect(damaged == sum(r.startswith("block") for r in reasons), "blocks", reasons)
    damaged = 0
    for item in file.metadata.attachments:
        try:
            _expect(len(file.attachment(item.name)) == item.length, "attachment", item.name)
        except BstkError as error:
            damaged += _reason(error).startswith("attachment")
    _expect(damaged == sum(r.startswith("attachment") for r in reasons), "attachments", reasons)
    for width in (1, 100, 1 << 20):
        spans = list(file.spans(0, file.available_blocks, width))
        ends = [(s.offset + s.length, s.stop) for s in spans]
        _expect([(s.offset, s.first) for s in spans[1:]] == ends[:-1], "spans", width)
        _expect(not spans or ends[-1][0] == file.superblock.present_length, "spans", width)
    if not reasons:
        if not tracemalloc.is_tracing():  # a second copy is not what reading takes
            again = metadata_reader.decode(metadata.encode(file.metadata), "", has_volumes=file.superblock.has_volumes)
            _expect(again == file.metadata, "metadata", "what is written again differs")
        _rebuild(file, blocks)
    return reasons[0] if reasons else None


def _expect(holds: bool, kind: str, detail: object) -> None:
    if not holds:
        raise Finding(kind, repr(detail))


def _plan(file: Container) -> None:
    low, high = file.minimum_bytes, file.total_bytes
    _expect(0 <= low <= high, "plan", (low, high))
    for budget in (low, (low + high) // 2, high, high + 1, 1 << 64, "100%"):
        plan = file.plan(budget)
        _expect(file.index.required <= plan.n_blocks <= file.available_blocks, "plan", plan)
        _expect(low <= plan.resident_bytes <= plan.budget, "plan", plan)
        _expect((plan.next_bytes is None) == (plan.n_blocks == file.available_blocks), "plan", plan)
        _expect(plan.next_bytes is None or plan.next_bytes > plan.budget, "plan", plan)
        _expect(0 <= plan.length <= file.superblock.present_length - plan.offset, "plan", plan)
    for budget in (low - 1, "-1", "1e9", f"{low}b"):
        try:
            file.plan(budget)
        except BstkError as error:
            _reason(error)


def _read(file: Container) -> list[bytes | None]:
    blocks: list[bytes | None] = []
    for number in range(file.available_blocks):
        try:
            blocks.append(file.read_block(number))
            _expect(len(blocks[-1] or b"") == file.block(number).length, "length", number)
        except BstkError as error:
            _reason(error)
            blocks.append(None)
    if file.available_blocks < len(file):
        try:
            file.read_block(file.available_blocks)
        except BstkError as error:
            _reason(error)
        else:
            raise Finding("prefix", "a block that is not there was read")
    return blocks


def _rebuild(file: Container, blocks: list[bytes | None]) -> None:
    by_chain: dict[int, list[Any]] = {}
    for number, data in enumerate(blocks):
        by_chain.setdefault(int(file.index.chain[number]), []).append((file.block(number).form, data))

    def scale(number: int) -> Any:
        tensor = file.tensors[number]
        held = by_chain[tensor.first_chain][0][1]
        return payload.as_float(np.frombuffer(held, np.uint8), tensor.dtype).reshape(tensor.shape)

    for tensor in file.model_tensors.values():
        elements = tensor.rows * tensor.columns
        if not tensor.packed or elements > MAX_ELEMENTS or any(len(v) > 64 for v in by_chain.values()):
            continue
        row, column, group = scale(tensor.row_scale), scale(tensor.col_scale), tensor.group_rows
        for g in range(tensor.n_chains):
            rows = min(group, tensor.rows - g * group)
            values = chain_values(
                tensor,
                rows,
                by_chain.get(tensor.first_chain + g, []),
                row[g * group : g * group + rows],
                column[g] if column.ndim == 2 else column,
            )
            _expect(values.shape == (rows, tensor.columns) and bool(np.isfinite(values).all()), "rebuilt", tensor.name)
            round_to(values, tensor.dtype)


def held_to_limits(
    data: bytes, *, memory: bool, ask: Callable[[bytes], str | None] = examine
) -> tuple[str | None, int]:
    """`examine` within the limits of time and, where asked for, memory; warnings are errors.

    Returns:
        The reason, and the peak of allocated bytes, 0 where it was not measured.

    Raises:
        Finding: any exception that is not a `BstkError`, more CPU time than `DEADLINE`, more memory than stated.
    """
    began = time.process_time()
    if memory:
        tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reason = ask(data)
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
    finally:
        if memory:
            tracemalloc.stop()
    took = time.process_time() - began
    if took > DEADLINE * (10 if memory else 1):
        raise Finding("slow", f"{took:.1f} s of CPU for {len(data)} bytes")
    if peak > (most := most_memory(data)):
        raise Finding("memory", f"{peak} bytes, more than {most}, for {len(data)}")
    return reason, peak


def most_memory(data: bytes) -> int:
    """The bytes that reading a file may take, from its length and what it declares within the bounds of spec §2."""
    decoded = 0
    if len(data) >= superblock.SIZE:
        for at in (32, 48):
            stored, length = struct.unpack_from("<QQ", data, at)
            if stored <= len(data) and length <= registry.expansion_limit(stored):
                decoded += length
    return BASE_BYTES + TIMES * (len(data) + decoded)


def limit_memory(more: int) -> None:
    """Let this process map only so many bytes more than it does: what allocates beyond it gets a MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
