"""The Triton kernel of dmel: a hop a program, its transform as two matrix products in registers.

x_ptr       [T, 800] fp32, stride_x between rows
state_ptr   [2, S, 800] fp32, the previous hop of each slot (HAS_STATE), strides state_copy and
            state_slot
out_ptr     [T, 80] int64, stride_out between rows
window_ptr  [1600]; filters_ptr [80, BANDS]; the other tables see `DMelWeights`
offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B: see kernels/device/lines.py

Sample n = 64 a + b of a frame, band k = r + 25 c. With w(p) a turn of -1/p:

    X[k] = sum over b of w(64)^(b c) * w(1600)^(b r) * (sum over a of x[a, b] * w(25)^(a r))

The frame is real, so r in 0 to 12 holds every magnitude: band k with r above 12 is the conjugate of
band 1600 - k. One program reads and writes all that a row needs: its bits are its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.lines import committed, line_facts, opens, uncommitted
from microturn.kernels.device.rows import line_of_row


@triton.jit
def magnitudes(
    x_row,
    before,
    has_before,
    window_ptr,
    row_waves_ptr,
    twiddles_ptr,
    column_waves_ptr,
    FLOOR: tl.constexpr,
    HOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """[1024] fp32: of band r + 25 c at place 64 r + c. before, x_row: pointers to the two hops."""
    r = tl.arange(0, 16)[:, None]
    a = tl.arange(0, 32)[:, None]
    c = tl.arange(0, 64)[None, :]
    wave = r * 32 + tl.arange(0, 32)[None, :]
    row_cos = tl.load(row_waves_ptr + wave)
    row_sin = tl.load(row_waves_ptr + 16 * 32 + wave)
    re = tl.zeros((16, 64), tl.float32)
    im = tl.zeros((16, 64), tl.float32)
    for first in tl.range(0, 64, BLOCK):
        b = first + tl.arange(0, BLOCK)
        n = a * 64 + b[None, :]
        older = n < HOP
        source = tl.where(older, before + n, x_row + n - HOP)
        x = tl.load(source, mask=(n < 2 * HOP) & (has_before | ~older), other=0.0)
        x *= tl.load(window_ptr + n, mask=n < 2 * HOP, other=0.0)
        zero = tl.zeros((16, BLOCK), tl.float32)
        real = tl.dot(row_cos, x, zero, input_precision="ieee")
        sine = tl.dot(row_sin, x, zero, input_precision="ieee")
        turn = r * 64 + b[None, :]
        cos = tl.load(twiddles_ptr + turn)
        sin = tl.load(twiddles_ptr + 16 * 64 + turn)
        # (real - i sine) (cos - i sin), the imaginary part with its sign turned
        along = real * cos - sine * sin
        across = real * sin + sine * cos
        at = b[:, None] * 64 + c
        column_cos = tl.load(column_waves_ptr + at)
        column_sin = tl.load(column_waves_ptr + 64 * 64 + at)
        re = tl.dot(along, column_cos, re, input_precision="ieee")
        re = tl.dot(-across, column_sin, re, input_precision="ieee")
        im = tl.dot(along, column_sin, im, input_precision="ieee")
        im = tl.dot(across, column_cos, im, input_precision="ieee")
    power = re * re + im * im
    # Not tl.maximum, which would lose a NaN.
    return tl.reshape(tl.sqrt_rn(tl.where(power < FLOOR, FLOOR, power)), (1024,))


@triton.jit
def dmel_rows(
    x_ptr,
    out_ptr,
    window_ptr,
    filters_ptr,
    edges_ptr,
    row_waves_ptr,
    twiddles_ptr,
    column_waves_ptr,
    starts_ptr,
    state_ptr,
    parity_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    state_copy,
    state_slot,
    B,
    stride_x,
    stride_out,
    FLOOR: tl.constexpr,
    HOP: tl.constexpr,
    MELS: tl.constexpr,
    BANDS: tl.constexpr,
    TAPS: tl.constexpr,
    LINES: tl.constexpr,
    HAS_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The bins of one row; the last row of a line leaves its hop in the state."""
    row = tl.program_id(0)
    line = line_of_row(row, offsets_ptr, B, LINES)
    start, length, home = line_facts(
        line, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, 1, 1, 0, HAS_STATE
    )
    to = out_ptr + row.to(tl.int64) * stride_out
    if home < 0:
        for first in tl.range(0, MELS, BLOCK_M):
            tl.store(to + first + tl.arange(0, BLOCK_M), tl.zeros((BLOCK_M,), tl.int64))
    else:
        x_row = x_ptr + row.to(tl.int64) * stride_x
        opening = row == start
        before = x_row - stride_x
        has_before = ~opening
        if HAS_STATE:
            if row == start + length - 1:
                kept = uncommitted(state_ptr, home, state_copy, state_slot)
                for first in tl.range(0, HOP, 512):
                    n = first + tl.arange(0, 512)
                    tl.store(kept + n, tl.load(x_row + n, mask=n < HOP), mask=n < HOP)
            has_before |= ~opens(home)
            past = committed(state_ptr, home, state_copy, state_slot)
            before = tl.where(opening, past, before)
        bands = magnitudes(
            x_row, before, has_before, window_ptr, row_waves_ptr, twiddles_ptr, column_waves_ptr,
            FLOOR, HOP, BLOCK,
        )  # fmt: skip
        edges = tl.load(edges_ptr + tl.arange(0, 16))
        for first in tl.range(0, MELS, BLOCK_M):
            m = first + tl.arange(0, BLOCK_M)
            begin = tl.multiple_of(tl.load(starts_ptr + m), 4)
            band = begin[:, None] + tl.arange(0, TAPS)[None, :]
            weight = tl.load(filters_ptr + m[:, None] * BANDS + band)
            # Bands past the last meet zeros: any place will do.
            r = band % 25
            c = band // 25
            place = tl.where(r <= 12, r * 64 + c, (25 - r) * 64 + 63 - c)
            some = tl.gather(bands, tl.reshape(place, (BLOCK_M * TAPS,)), 0)
            sums = tl.sum(tl.reshape(some, (BLOCK_M, TAPS)) * weight, 1)
            # NaN is above no edge.
            bins = tl.sum((sums[:, None] > edges[None, :]).to(tl.int32), 1)
            tl.store(to + m, bins.to(tl.int64))
