"""The Triton kernel of open_lines.

slots_ptr     [B] int32, offsets_ptr [B + 1] int32, emits_ptr, reset_ptr [B] uint8
rows_ptr, frames_ptr, parity_ptr [S] int64; kept_ptr [2, S, W] int64
start_ptr     [W] int64
positions_ptr [T], heard_ptr [E * F], steps_ptr [F, E], said_ptr [F - 1, E], ends_ptr [E],
feedback_ptr  [B, W], after_ptr [2, B], all int64: the results
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def open_lines_one(
    slots_ptr,
    offsets_ptr,
    emits_ptr,
    reset_ptr,
    rows_ptr,
    frames_ptr,
    parity_ptr,
    kept_ptr,
    start_ptr,
    positions_ptr,
    heard_ptr,
    steps_ptr,
    said_ptr,
    ends_ptr,
    feedback_ptr,
    after_ptr,
    B,
    T,
    E,
    S,
    W: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr,
):
    """A line a program; program B gives zeros to the rows that no line owns."""
    b = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    inside = b < B
    first = tl.load(offsets_ptr + b)
    last = tl.load(offsets_ptr + b + 1, mask=inside, other=0)
    last = tl.where(inside, last, T)
    slot = tl.load(slots_ptr + b, mask=inside, other=-1)
    there = inside & (slot >= 0)
    emits = tl.load(emits_ptr + b, mask=there, other=0) != 0
    fresh = tl.load(reset_ptr + b, mask=there, other=0) != 0
    slot = tl.maximum(slot, 0).to(tl.int64)
    row = tl.load(rows_ptr + slot, mask=there & (fresh == 0), other=0)
    frame = tl.load(frames_ptr + slot, mask=there & (fresh == 0), other=0)
    parity = tl.load(parity_ptr + slot, mask=there & (fresh == 0), other=0)
    zero = tl.zeros_like(row)
    tl.store(rows_ptr + slot, zero, mask=there & fresh)
    tl.store(frames_ptr + slot, zero, mask=there & fresh)
    tl.store(parity_ptr + slot, zero, mask=there & fresh)
    end = row + last - first
    step = first
    lane = tl.arange(0, BLOCK)
    while step < last:
        at = step + lane
        position = tl.where(there, row + at - first, 0)
        tl.store(positions_ptr + at, position, mask=at < last)
        step += BLOCK
    w = tl.arange(0, BLOCK_W)
    wide = (w < W) & inside
    start = tl.load(start_ptr + w, mask=wide, other=0)
    kept = tl.load(kept_ptr + (parity * S + slot) * W + w, mask=wide & there & (frame > 0), other=0)
    kept = tl.where(frame == 0, start, kept)
    tl.store(feedback_ptr + b * W + w, tl.where(there, kept, 0), mask=wide)
    after_row = end + tl.where(emits, F - 1, 0)
    after_frame = frame + tl.where(emits, F, 0)
    tl.store(after_ptr + b, tl.where(there, after_row, 0), mask=inside)
    tl.store(after_ptr + B + b, tl.where(there, after_frame, 0), mask=inside)
    speaks = inside & (b < E)
    f = tl.arange(0, BLOCK_F)
    heard = tl.where(emits, frame + f, 0)
    tl.store(heard_ptr + b * F + f, heard, mask=(f < F) & speaks)
    tl.store(steps_ptr + f * E + b, heard, mask=(f < F) & speaks)
    said = tl.where(emits, end + f, 0)
    tl.store(said_ptr + f * E + b, said, mask=(f < F - 1) & speaks)
    ends = tl.where(there, tl.maximum(last - 1, 0), 0).to(tl.int64)
    tl.store(ends_ptr + b, ends, mask=speaks)
