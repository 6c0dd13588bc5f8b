"""The Triton kernel of residual_unit: both convolutions in one launch, what is between on the chip.

x_ptr     [T, C], stride_x between rows
inner_ptr [H, TAPS, C], inner_bias_ptr [H] (HAS_INNER_BIAS)
outer_ptr [C, H], outer_bias_ptr [C] (HAS_OUTER_BIAS)
y_ptr     [T, C], stride_y between rows
state_ptr [2, S, TAPS - 1, C], stride_copy and stride_slot between its first two axes (HAS_STATE)
parity_ptr [S] int64
offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, UP: see kernels/device/lines.py

The first TILES programs make BLOCK_T rows of y each, the B after them the new tail of a line each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.causal_conv.kernel import keep_tail
from microturn.kernels.device.lines import committed, find_lines, opens
from microturn.kernels.device.numbers import elu
from microturn.kernels.device.prefetch import prefetch_flat
from microturn.kernels.device.window import window_block


@triton.jit
def unit_tiles(
    x_ptr,
    inner_ptr,
    inner_bias_ptr,
    outer_ptr,
    outer_bias_ptr,
    y_ptr,
    state_ptr,
    parity_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    B,
    halvings,
    T,
    TILES,
    stride_x,
    stride_y,
    stride_copy,
    stride_slot,
    C: tl.constexpr,
    H: tl.constexpr,
    TAPS: tl.constexpr,
    UP: tl.constexpr,
    HAS_INNER_BIAS: tl.constexpr,
    HAS_OUTER_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """y = x + outer(elu(inner(elu(x)))) of BLOCK_T rows; BLOCK_H holds all of H.

    Weights stand on the M side of both products, rows on their N side.
    """
    HISTORY: tl.constexpr = TAPS - 1
    pid = tl.program_id(0)
    if pid < TILES:
        WIDTH: tl.constexpr = TAPS * C
        DTYPE: tl.constexpr = x_ptr.dtype.element_ty
        if PDL:
            prefetch_flat(inner_ptr, H * WIDTH, pid, TILES)
            prefetch_flat(outer_ptr, H * C, pid, TILES)
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        t = pid * BLOCK_T + tl.arange(0, BLOCK_T)
        _, start, _, home = find_lines(
            t, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, halvings, UP, 1, 0,
            HAS_STATE,
        )  # fmt: skip
        start = start[None, :]
        home = home[None, :]
        runs = (home >= 0) & (t < T)[None, :]
        begin = t[None, :] - start - HISTORY
        kept = committed(state_ptr, home, stride_copy, stride_slot) if HAS_STATE else x_ptr
        h = tl.arange(0, BLOCK_H)
        k = tl.arange(0, BLOCK_K)[None, :]
        # What lies past the end reads the last: no mask between the loads and 16 bytes each.
        h_in = h
        if BLOCK_H != H:
            h_in = tl.minimum(h, H - 1)
        w_row = inner_ptr + (h_in * WIDTH)[:, None]
        hidden = tl.zeros((BLOCK_H, BLOCK_T), tl.float32)
        for step in tl.range(0, (WIDTH + BLOCK_K - 1) // BLOCK_K, num_stages=STAGES):
            at = step * BLOCK_K + k
            if WIDTH % BLOCK_K == 0:
                w = tl.load(w_row + at)
            else:
                w = tl.load(w_row + at, mask=at < WIDTH, other=0.0)
            x = window_block(
                x_ptr,
                stride_x,
                kept,
                start,
                begin,
                opens(home),
                runs,
                step,
                C,
                TAPS,
                HISTORY,
                True,
                False,
                HAS_STATE,
                DTYPE,
                BLOCK_K,
            )
            hidden = tl.dot(w, x, hidden, input_precision="ieee")
        if HAS_INNER_BIAS:
            hidden += tl.load(inner_bias_ptr + h_in)[:, None].to(tl.float32)
        hidden = elu(hidden)
        if BLOCK_H != H:
            hidden = tl.where((h < H)[:, None], hidden, 0.0)
        narrow = hidden.to(DTYPE)
        t_at = t.to(tl.int64)[None, :]
        for block in tl.range(0, (C + BLOCK_C - 1) // BLOCK_C, num_stages=2):
            c = block * BLOCK_C + tl.arange(0, BLOCK_C)
            c_in = tl.minimum(c, C - 1)[:, None]
            w = tl.load(outer_ptr + c_in * H + h_in[None, :])
            y = tl.dot(w, narrow, input_precision="ieee")
            if HAS_OUTER_BIAS:
                y += tl.load(outer_bias_ptr + c_in).to(tl.float32)
            stored = (t < T)[None, :]
            if C % BLOCK_C != 0:
                stored = stored & (c < C)[:, None]
            skip = tl.load(x_ptr + t_at * stride_x + c[:, None], mask=stored & runs, other=0.0)
            y = tl.where(runs, skip.to(tl.float32) + y, 0.0)
            to = y_ptr + t_at * stride_y + c[:, None]
            tl.store(to, y.to(y_ptr.dtype.element_ty), mask=stored)
    else:
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        keep_tail(
            pid - TILES, x_ptr, stride_x, state_ptr, parity_ptr, offsets_ptr, slots_ptr, exec_ptr,
            positions_ptr, B, stride_copy, stride_slot, C, HISTORY, UP, True, False, BLOCK_TAIL,
        )  # fmt: skip
