"""Lines of a tile of packed rows, at any rate over the rows the caller named.

Line b owns rows start(b) to start(b + 1) - 1 of the op, start(b) = offsets[b] * UP // DOWN +
b * EXTRA: UP where a codec level runs at a multiple of the caller's rate, DOWN where a stride
leaves fewer rows, EXTRA for rows an op adds to every line.

offsets_ptr   [B + 1] int32  caller's rows of each line
slots_ptr     [B] int32      line -> slot, -1 for padding
exec_ptr      [B] uint8      whether the line runs (a bool tensor seen as bytes)
positions_ptr [T] int64      caller's row -> position in its stream
parity_ptr    [S] int64      which copy of a slot's state is committed (HAS_STATE)

What a line does is one number, its home: -1 where it does not run or brings no rows, else
slot * 4 + parity * 2 + (1 where it opens its stream at position 0, so that no state is read).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_lines(
    rows,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    parity_ptr,
    B,
    halvings,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    EXTRA: tl.constexpr,
    HAS_STATE: tl.constexpr,
):
    """(line, its first row, its rows without the EXTRA ones, its home) of each row; 2^halvings > B.

    A row that no line owns has line B, as many rows before it as all lines have, and home -1.
    The loops are `while` so that Triton does not repeat all of this once for every layout in which
    the results are used, as it does with anything else that is small.
    """
    low = tl.zeros_like(rows)
    high = low + B
    step = 0
    while step < halvings:
        middle = (low + high) // 2
        end = tl.load(offsets_ptr + tl.minimum(middle + 1, B)) * UP // DOWN + (middle + 1) * EXTRA
        past = (end <= rows) & (middle < high)
        low = tl.where(past, middle + 1, low)
        high = tl.where(past, high, middle)
        step += 1
    start = tl.zeros_like(rows)
    length = tl.zeros_like(rows)
    home = tl.zeros_like(rows)
    step = 0
    while step < 1:
        start, length, home = line_facts(
            low, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, UP, DOWN, EXTRA,
            HAS_STATE,
        )  # fmt: skip
        step += 1
    return low, start, length, home


@triton.jit
def line_facts(
    line,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    parity_ptr,
    B,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    EXTRA: tl.constexpr,
    HAS_STATE: tl.constexpr,
):
    """(first row, rows without the EXTRA ones, home) of lines; line may be B: no rows, home -1."""
    inside = line < B
    first = tl.load(offsets_ptr + line)
    rows = tl.load(offsets_ptr + tl.minimum(line + 1, B)) - first
    slot = tl.load(slots_ptr + line, mask=inside, other=-1)
    executes = tl.load(exec_ptr + line, mask=inside, other=0)
    runs = (executes != 0) & (rows > 0) & (slot >= 0)
    position = tl.load(positions_ptr + first, mask=runs, other=0)
    home = slot * 4 + (position == 0).to(tl.int32)
    if HAS_STATE:
        home += 2 * tl.load(parity_ptr + slot, mask=runs, other=0).to(tl.int32)
    return first * UP // DOWN + line * EXTRA, rows * UP // DOWN, tl.where(runs, home, -1)


@triton.jit
def opens(home):
    """Whether lines begin their stream: there nothing is read from their state."""
    return (home & 1) != 0


@triton.jit
def committed(state_ptr, home, stride_copy, stride_slot):
    """Pointers to the copy of slots' state that a step reads."""
    return _copy(state_ptr, home, (home >> 1) & 1, stride_copy, stride_slot)


@triton.jit
def uncommitted(state_ptr, home, stride_copy, stride_slot):
    """Pointers to the copy of slots' state that a step writes."""
    return _copy(state_ptr, home, 1 - ((home >> 1) & 1), stride_copy, stride_slot)


@triton.jit
def _copy(state_ptr, home, copy, stride_copy, stride_slot):
    slot = tl.maximum(home >> 2, 0).to(tl.int64)
    return state_ptr + slot * stride_slot + copy * stride_copy
