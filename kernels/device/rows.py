"""Which line a row belongs to, and what its line is doing.

offsets_ptr [B + 1] int32   line b owns rows offsets[b]:offsets[b + 1]
slots_ptr   [B] int32       line -> slot, -1 for padding
exec_ptr    [B] uint8       whether the line runs (a bool tensor seen as bytes)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def line_of_row(row, offsets_ptr, B, LINES: tl.constexpr):
    """The line of one row, B where no line owns it; LINES a power of two >= B."""
    b = tl.arange(0, LINES)
    ends = tl.load(offsets_ptr + 1 + b, mask=b < B, other=2147483647)
    return tl.sum((ends <= row).to(tl.int32))


@triton.jit
def running_slot(line, slots_ptr, exec_ptr, B):
    """The slot of a line that runs, else -1 (line may be B: no line)."""
    inside = line < B
    slot = tl.load(slots_ptr + line, mask=inside, other=-1)
    runs = tl.load(exec_ptr + line, mask=inside, other=0)
    return tl.where(runs != 0, slot, -1)
