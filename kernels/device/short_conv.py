"""One row of a depthwise causal convolution whose older inputs lie in a ring.

x_ptr         [T, C], stride_x between rows: the raw inputs of this step
ring_ptr      [S, capacity, C]: raw inputs of slots; position p lies at p % capacity
taps_ptr      [C, K]; PACKED: [C] int64, the four 16-bit taps of a channel, read 16 bytes at a time
slots_ptr, offsets_ptr, exec_ptr: see device/rows.py; positions_ptr [T] int64

Rows of one launch are programs of their own, in any order. A program reads from the ring only
positions before the first row of its line, at most K - 1 back, and writes only the position of its
row; taps of this step come from x. So a line reads first - K + 1 to first - 1 and writes first to
first + n - 1: n + K - 1 positions in a row, which a ring of that capacity (checked, and the ops'
specs give more) keeps in different places. No write meets another program's read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.rows import line_of_row, running_slot


@triton.jit
def row_facts(
    row, slots_ptr, offsets_ptr, positions_ptr, exec_ptr, B, LINES: tl.constexpr
):  # fmt: skip
    """(slot or -1 where the row's line does not run, first row of its line, position)."""
    line = line_of_row(row, offsets_ptr, B, LINES)
    slot = running_slot(line, slots_ptr, exec_ptr, B)
    first = tl.load(offsets_ptr + line)
    return slot, first, tl.load(positions_ptr + row).to(tl.int32)


@triton.jit
def packed_taps(taps_ptr, c, inside, PACKED: tl.constexpr):
    """What `tap` takes of channels c; asked for before the inputs are there."""
    if PACKED:
        return tl.load(taps_ptr + c, mask=inside, other=0)
    else:
        return c


@triton.jit
def tap(packed, taps_ptr, c, inside, m, K: tl.constexpr, PACKED: tl.constexpr, DTYPE: tl.constexpr):
    """Tap m of channels c, fp32."""
    if PACKED:
        bits = (packed >> (16 * m)).to(tl.int16)
        return bits.to(DTYPE, bitcast=True).to(tl.float32)
    else:
        return tl.load(taps_ptr + c * K + m, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def convolve_row(
    x_ptr,
    ring_ptr,
    taps_ptr,
    packed,
    c,
    inside,
    row,
    first,
    position,
    slot,
    stride_x,
    capacity,
    C: tl.constexpr,
    K: tl.constexpr,
    PACKED: tl.constexpr,
):
    """(x, x + sum of taps in fp32) of channels c of one row; x is kept in the ring, and every tap
    meets its input as the ring keeps it. A row that does not run gives zeros and keeps nothing.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    kept: tl.constexpr = ring_ptr.dtype.element_ty
    x_row = x_ptr + tl.cast(row, tl.int64) * stride_x
    ring = ring_ptr + tl.maximum(slot, 0).to(tl.int64) * capacity * C
    inside = inside & (slot >= 0)
    x = tl.load(x_row + c, mask=inside, other=0.0)
    total = tl.zeros_like(x).to(tl.float32)
    for m in tl.static_range(K - 1):
        back = K - 1 - m
        now = row - back >= first
        before = (row - back < first) & (position >= back)
        new = tl.load(x_row - back * stride_x + c, mask=inside & now, other=0.0)
        old = tl.load(
            ring + tl.maximum(position - back, 0) % capacity * C + c,
            mask=inside & before,
            other=0.0,
        )
        value = tl.where(now, new.to(kept).to(tl.float32), old.to(tl.float32))
        total += tap(packed, taps_ptr, c, inside, m, K, PACKED, dtype) * value
    own = x.to(kept)
    total += tap(packed, taps_ptr, c, inside, K - 1, K, PACKED, dtype) * own.to(tl.float32)
    tl.store(ring + position % capacity * C + c, own, mask=inside)
    return x, x.to(tl.float32) + total
