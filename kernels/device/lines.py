"""Lines of a tile of packed rows, at any rate over the rows the caller named.

Line b owns rows start(b) to start(b + 1) - 1 of the op, start(b) = offsets[b] * UP // DOWN +
b * EXTRA: UP where a codec level runs at a multiple of the caller's rate, DOWN where a stride
leaves fewer rows, EXTRA for rows an op adds to every line.

offsets_ptr   [B + 1] int32  caller's rows of each line
slots_ptr     [B] int32      line -> slot, -1 for padding
exec_ptr      [B] uint8      whether the line runs (a bool tensor seen as bytes)
positions_ptr [T] int64      caller's row -> position in its stream
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lines_of_rows(
    rows,
    offsets_ptr,
    B,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    EXTRA: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """The line of each row, B where none owns it; 2^SEARCH > B."""
    low = tl.zeros_like(rows)
    high = low + B
    for _ in tl.static_range(SEARCH):
        middle = (low + high) // 2
        end = tl.load(offsets_ptr + tl.minimum(middle + 1, B)) * UP // DOWN + (middle + 1) * EXTRA
        past = (end <= rows) & (middle < high)
        low = tl.where(past, middle + 1, low)
        high = tl.where(past, high, middle)
    return low


@triton.jit
def line_span(line, offsets_ptr, B, UP: tl.constexpr, DOWN: tl.constexpr, EXTRA: tl.constexpr):
    """(first row, rows without the EXTRA ones) of lines; line may be B: no line, no rows."""
    first = tl.load(offsets_ptr + line)
    last = tl.load(offsets_ptr + tl.minimum(line + 1, B))
    return first * UP // DOWN + line * EXTRA, (last - first) * UP // DOWN


@triton.jit
def line_slot(line, slots_ptr, exec_ptr, offsets_ptr, B):
    """The slot of lines that run and bring rows, else -1; line may be B."""
    inside = line < B
    slot = tl.load(slots_ptr + line, mask=inside, other=-1)
    runs = tl.load(exec_ptr + line, mask=inside, other=0)
    first = tl.load(offsets_ptr + line)
    last = tl.load(offsets_ptr + tl.minimum(line + 1, B))
    return tl.where((runs != 0) & (last > first), slot, -1)


@triton.jit
def line_opens(line, slot, offsets_ptr, positions_ptr):
    """Whether lines that run (slot not -1) begin at position 0, where no state is read."""
    first = tl.load(offsets_ptr + line)
    return tl.load(positions_ptr + first, mask=slot >= 0, other=0) == 0


@triton.jit
def committed(state_ptr, parity_ptr, slot, stride_copy, stride_slot):
    """Pointers to the committed copy of slots' tails, and to the one a step writes (slot -1: that
    of slot 0, to be masked).
    """
    safe = tl.maximum(slot, 0).to(tl.int64)
    parity = tl.load(parity_ptr + safe)
    home = state_ptr + safe * stride_slot
    return home + parity * stride_copy, home + (1 - parity) * stride_copy
