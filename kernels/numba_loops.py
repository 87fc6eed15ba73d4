"""The loops of `numba_path`, compiled: what one thread does for all others, and what each does with its rows."""

from typing import Final

from numba import types

from .numba_items import (
    HEAD,
    ITEM,
    entries_begin,
    entries_end,
    fill_z,
    last_gain,
    load_u,
    place_signs,
    read_number,
    width_of,
    z_floats,
)
from .numba_memory import (
    call_by_threads,
    callback,
    clear,
    compiled,
    copy,
    read_f32,
    read_i64,
    read_u8,
    read_u16,
    take_number,
    write_f32,
    write_i64,
)
from .numba_tables import TABLE_BYTES, TABLE_FLOATS, WIDTH, add_by_table, by_table, fill_table
from .numba_vectors import LANES, ROWS, add_row, dot_many, dot_one

TASK: Final = 24
"""Numbers of a task.

Next part, next scratch, rows of a part, first row, end row, plan, first item, end item, tokens, x, floats of a row of
x, z, target, whether to scale the rows, whether W itself is wanted, the values of e4m3, scratch, whether the target is
fresh; whether a table is used, and then its first rank, first byte column, how many byte columns, and the token.
"""
PART: Final = 64
"""Rows that a thread takes at a time, at most."""
SCRATCH: Final = 64 + 4 * 8 * PART
"""Bytes that a thread needs, a float32 row of W apart: addresses of signs, and factors U of its rows."""


@compiled
def _multiply(task: int, a: int, b: int, scratch: int, e4m3: int) -> None:
    """Add to rows a … b − 1 of y what the items make of x and z."""
    plan, tokens, x, stride, z, y = (
        read_i64(task + 40),
        read_i64(task + 64),
        read_i64(task + 72),
        read_i64(task + 80),
        read_i64(task + 88),
        read_i64(task + 96),
    )
    rows, row_bytes = read_i64(plan), read_i64(plan + 16)
    groups = (read_i64(plan + 8) + LANES - 1) // LANES
    for number in range(read_i64(task + 48), read_i64(task + 56)):
        item = plan + 8 * (HEAD + ITEM * number)
        if by_table(plan, item):
            continue
        if read_i64(item):
            _multiply_sparse(item, a, b, rows, tokens, x, stride, y, e4m3)
            continue
        planes, rank, gain, size = read_i64(item + 8), read_i64(item + 16), last_gain(item), z_floats(plan, item)
        first, offset = 0, 0
        while first < rank:
            width = width_of(rank - first)
            for i in range(a, b):
                load_u(item, i, first, width, types.float32(1), scratch + 64 + 4 * width * (i - a), e4m3)
            i = a
            while i < b:
                step = ROWS if i + ROWS <= b else 1
                place_signs(item, i, row_bytes, scratch)
                u = scratch + 64 + 4 * width * (i - a)
                for token in range(tokens):
                    source, target = z + 4 * (token * size + offset), y + 4 * (token * rows + i)
                    if step == ROWS:
                        dot_many(planes, width, scratch, row_bytes, gain, source, u, target)
                    else:
                        dot_one(planes, width, scratch, row_bytes, gain, source, u, target)
                i += step
            first += width
            offset += groups * LANES * width
        z += 4 * tokens * size


@compiled
def _multiply_sparse(item: int, a: int, b: int, rows: int, tokens: int, x: int, stride: int, y: int, e4m3: int) -> None:
    scale, columns, values = read_f32(read_i64(item + 24)), read_i64(item + 48), read_i64(item + 56)
    begin = entries_begin(item, a)
    for i in range(a, b):
        end = entries_end(item, i, rows)
        for token in range(tokens):
            total, own = types.float32(0), x + 4 * token * stride
            for e in range(begin, end):
                total += read_f32(e4m3 + 4 * read_u8(values + e)) * read_f32(own + 4 * read_u16(columns + 2 * e))
            target = y + 4 * (token * rows + i)
            write_f32(target, read_f32(target) + scale * total)
        begin = end


@compiled
def _rebuild_row(task: int, i: int, scratch: int, e4m3: int) -> None:
    """Add to row i of W, which begins at the task's first row, what the items make."""
    plan, x, z = read_i64(task + 40), read_i64(task + 72), read_i64(task + 88)
    rows, columns, row_bytes = read_i64(plan), read_i64(plan + 8), read_i64(plan + 16)
    target = read_i64(task + 96) + 4 * (i - read_i64(task + 24)) * columns
    groups = (columns + LANES - 1) // LANES
    # Whole groups are summed where they belong, others first where there is room for the last group.
    direct = columns % LANES == 0
    row = target if direct else scratch + SCRATCH
    if read_i64(task + 136):
        clear(row, 4 * groups * LANES)
    elif not direct:
        copy(row, target, 4 * columns)
    factor = read_number(read_i64(plan + 24), i, read_i64(plan + 32), e4m3)
    for number in range(read_i64(task + 48), read_i64(task + 56)):
        item = plan + 8 * (HEAD + ITEM * number)
        if read_i64(item):
            scale, places, values = read_f32(read_i64(item + 24)), read_i64(item + 48), read_i64(item + 56)
            for e in range(entries_begin(item, i), entries_end(item, i, rows)):
                j = read_u16(places + 2 * e)
                value = factor * scale * read_f32(e4m3 + 4 * read_u8(values + e)) * read_f32(x + 4 * j)
                write_f32(row + 4 * j, read_f32(row + 4 * j) + value)
            continue
        planes, rank, gain = read_i64(item + 8), read_i64(item + 16), last_gain(item)
        place_signs(item, i, row_bytes, scratch)
        first = 0
        while first < rank:
            width = width_of(rank - first)
            load_u(item, i, first, width, factor, scratch + 64, e4m3)
            add_row(planes, width, scratch, row_bytes, gain, z, scratch + 64, row)
            first += width
            z += 4 * groups * LANES * width
    if not direct:
        copy(target, row, 4 * columns)


@compiled
def scratch_bytes(plan: int) -> int:
    """Return the bytes that each thread needs for a chain: SCRATCH, and a row of W or a table."""
    size = LANES * ((read_i64(plan + 8) + LANES - 1) // LANES)
    for number in range(read_i64(plan + 56)):
        if by_table(plan, plan + 8 * (HEAD + ITEM * number)):
            size = max(size, TABLE_FLOATS)
    return SCRATCH + 4 * size


@callback
def work(task: int) -> None:
    """Take parts of a task until none is left. The part is what a thread's number decides, never the result."""
    plan, size, first, end = read_i64(task + 40), read_i64(task + 16), read_i64(task + 24), read_i64(task + 32)
    tokens, y, scaled = read_i64(task + 64), read_i64(task + 96), read_i64(task + 104)
    e4m3 = read_i64(task + 120)
    scratch = read_i64(task + 128) + take_number(task + 8) * scratch_bytes(plan)
    rows = read_i64(plan)
    # Only where there is a table:
    item, table, filled = plan + 8 * (HEAD + ITEM * read_i64(task + 48)), scratch + SCRATCH, False
    first_rank, byte, count, token = (
        read_i64(task + 152),
        read_i64(task + 160),
        read_i64(task + 168),
        read_i64(task + 176),
    )
    x, own = read_i64(task + 72) + 4 * token * read_i64(task + 80), y + 4 * token * rows
    while True:
        a = first + size * take_number(task)
        if a >= end:
            break
        b = min(a + size, end)
        if read_i64(task + 112):
            for i in range(a, b):
                _rebuild_row(task, i, scratch, e4m3)
            continue
        if read_i64(task + 136):
            for token in range(tokens):
                clear(y + 4 * (token * rows + a), 4 * (b - a))
        if read_i64(task + 144):
            if not filled:
                fill_table(plan, item, first_rank, byte, count, x, table, e4m3)
                filled = True
            add_by_table(plan, item, first_rank, byte, count, table, a, b, scratch + 64, own, e4m3)
        else:
            _multiply(task, a, b, scratch, e4m3)
        if scaled:
            for i in range(a, b):
                factor = read_number(read_i64(plan + 24), i, read_i64(plan + 32), e4m3)
                for token in range(tokens):
                    target = y + 4 * (token * rows + i)
                    write_f32(target, read_f32(target) * factor)


@compiled
def run(
    plan: int,
    first: int,
    end: int,
    tokens: int,
    x: int,
    target: int,
    whole: bool,
    workspace: int,
    z_limit: int,
    threads: int,
    e4m3: int,
    parallel: int,
    function: int,
) -> None:
    """Multiply x by all rows of a chain, or write some rows of W itself.

    Args:
        plan: address of a plan.
        first: first row of W that is wanted; 0 for a product.
        end: the row after the last one; all rows for a product.
        tokens: rows of x; 1 for W.
        x: address of float32 [tokens, columns]; 0 for W.
        target: address of float32 [tokens, rows], or [end - first, columns] for W.
        whole: whether W is wanted.
        workspace: address of what `numba_path` reckons.
        z_limit: float32 of z that it holds, if no item needs more.
        threads: how many may work.
        e4m3: address of the 256 values of that type as float32.
        parallel: address of GOMP_parallel; with one thread it does not matter.
        function: address of `work`.
    """
    columns, items = read_i64(plan + 8), read_i64(plan + 56)
    stride = (columns + LANES - 1) // LANES * LANES
    task = workspace
    xs = task + 8 * TASK
    scratch = xs + 4 * tokens * stride
    z = scratch + threads * scratch_bytes(plan)
    for token in range(tokens):
        for j in range(stride):
            value = types.float32(0)
            if j < columns:
                value = read_number(read_i64(plan + 40), j, read_i64(plan + 48), e4m3)
                if not whole:
                    value *= read_f32(x + 4 * (token * columns + j))
            write_f32(xs + 4 * (token * stride + j), value)
    part = (((end - first) + 4 * threads - 1) // (4 * threads) + ROWS - 1) // ROWS * ROWS
    for index, number in enumerate((0, 0, min(part, PART), first, end, plan, 0, 0, tokens, xs, stride, z, target)):
        write_i64(task + 8 * index, number)
    write_i64(task + 112, whole)
    write_i64(task + 120, e4m3)
    write_i64(task + 128, scratch)
    write_i64(task + 144, 0)
    tables = 0
    for number in range(items):
        tables += not whole and by_table(plan, plan + 8 * (HEAD + ITEM * number))
    done = 0
    while done < items and tables < items:
        last, used = done, 0
        while last < items:
            item = plan + 8 * (HEAD + ITEM * last)
            size = 0 if not whole and by_table(plan, item) else z_floats(plan, item)
            if used and used + tokens * size > z_limit:
                break
            for token in range(tokens if size else 0):
                fill_z(plan, item, xs + 4 * token * stride, z + 4 * (used + token * size), e4m3)
            used += tokens * size
            last += 1
        write_i64(task + 48, done)
        write_i64(task + 56, last)
        _start(task, done == 0, last == items and not tables, threads, parallel, function)
        done = last
    fresh = done == 0
    for number in range(items if tables else 0):
        if by_table(plan, plan + 8 * (HEAD + ITEM * number)):
            tables -= 1
            write_i64(task + 48, number)
            for token in range(tokens):
                scaled = tables == 0 and token == tokens - 1
                _run_tables(task, number, token, fresh, scaled, threads, parallel, function)
                fresh = False


@compiled
def _start(task: int, fresh: bool, scaled: bool, threads: int, parallel: int, function: int) -> None:
    """Have a task done, from its first part on."""
    write_i64(task, 0)
    write_i64(task + 8, 0)
    write_i64(task + 104, scaled)
    write_i64(task + 136, fresh)
    call_by_threads(parallel, function, task, threads)


@compiled
def _run_tables(
    task: int, number: int, token: int, fresh: bool, scaled: bool, threads: int, parallel: int, function: int
) -> None:
    """Multiply one token by one item, eight ranks and some byte columns at a time."""
    plan = read_i64(task + 40)
    item = plan + 8 * (HEAD + ITEM * number)
    rank, row_bytes = read_i64(item + 16), read_i64(plan + 16)
    blocks = (row_bytes + TABLE_BYTES - 1) // TABLE_BYTES
    step = (row_bytes + blocks - 1) // blocks
    write_i64(task + 144, 1)
    write_i64(task + 176, token)
    for first in range(0, rank, WIDTH):
        for byte in range(0, row_bytes, step):
            count = min(step, row_bytes - byte)
            write_i64(task + 152, first)
            write_i64(task + 160, byte)
            write_i64(task + 168, count)
            last = first + WIDTH >= rank and byte + step >= row_bytes
            _start(task, fresh and first == 0 and byte == 0, scaled and last, threads, parallel, function)
