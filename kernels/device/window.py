"""Windows of rows as the operand of a matrix product, their first rows kept from the last call."""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.numbers import elu


@triton.jit
def window_block(
    x_ptr,
    stride_x,
    kept,
    line_row,
    begin,
    opening,
    inside,
    step,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    HISTORY: tl.constexpr,
    ELU: tl.constexpr,
    REPLICATE: tl.constexpr,
    HAS_STATE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Block `step` of R windows [TAPS * C] as [BLOCK_K, R] in DTYPE, ELU applied in fp32.

    Of the rows, [1, R]:

    kept     pointers to [HISTORY, C], what the last call left, after ELU (HAS_STATE)
    line_row row of x where the row's line begins
    begin    of the window, in rows of its line; the HISTORY rows before its first are negative
    opening  the line opens its stream: before it are zeros, or copies of its first row (REPLICATE)
    inside   False: the row may be read from nowhere and gives zeros
    """
    k = tl.arange(0, BLOCK_K)[:, None]
    if C % BLOCK_K == 0:
        tap = step // (C // BLOCK_K)
        channel = step % (C // BLOCK_K) * BLOCK_K + k
        row = begin + tap
        keep = inside
    else:
        at = step * BLOCK_K + k
        tap = at // C
        channel = at % C
        row = begin + tap
        keep = inside & (at < TAPS * C)
    from_x = x_ptr + (line_row + tl.maximum(row, 0)).to(tl.int64) * stride_x
    if HISTORY > 0:
        before = row < 0
        if not REPLICATE:
            keep = keep & ~(before & opening)
        if HAS_STATE:
            old = before & ~opening
            from_x = tl.where(old, kept + (row + HISTORY) * C, from_x)
    value = tl.load(from_x + channel, mask=keep, other=0.0)
    if not ELU:
        return value.to(DTYPE)
    wide = elu(value.to(tl.float32))
    if HISTORY > 0 and HAS_STATE:
        wide = tl.where(old, value.to(tl.float32), wide)
    return wide.to(DTYPE)
