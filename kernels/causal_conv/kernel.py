"""The Triton kernel of causal_conv: an implicit matrix product over windows of rows.

x_ptr     [T, C], stride_x between rows
w_ptr     [N, TAPS, C]
bias_ptr  [N] (HAS_BIAS)
skip_ptr  [T_OUT, N] added to the result, stride_skip between rows (SKIP)
y_ptr     [T_OUT, N], stride_y between rows
state_ptr [2, S, HISTORY, C], stride_copy and stride_slot between its first two axes (HAS_STATE)
parity_ptr [S] int64
offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, UP: see kernels/device/lines.py
parts_ptr  [SPLIT, T_OUT, N] fp32, what each split of the window has summed (SPLIT > 1)
counts_ptr one counter for each tile of y, zero before and after (SPLIT > 1)

The first TILES programs make a tile of y each, the B after them the new tail of a line each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.lines import (
    committed,
    line_opens,
    line_slot,
    line_span,
    lines_of_rows,
)
from microturn.kernels.device.numbers import elu
from microturn.kernels.device.prefetch import prefetch_l2
from microturn.kernels.device.window import along, window_block


@triton.jit
def conv_tiles(
    x_ptr,
    w_ptr,
    bias_ptr,
    skip_ptr,
    y_ptr,
    state_ptr,
    parity_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    parts_ptr,
    counts_ptr,
    B,
    T_OUT,
    TILES,
    stride_x,
    stride_skip,
    stride_y,
    stride_copy,
    stride_slot,
    N: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    UP: tl.constexpr,
    ELU: tl.constexpr,
    ELU_OUT: tl.constexpr,
    REPLICATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SKIP: tl.constexpr,
    SEARCH: tl.constexpr,
    SPLIT: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile [BLOCK_T, BLOCK_N] of y over one split of the window (transposed where SWAP), or the
    tail of a line.

    Every row is summed over the same blocks in the same order whatever else is in the batch. The
    last split to arrive at a tile adds all of them, first to last.
    """
    HISTORY: tl.constexpr = TAPS - STRIDE
    pid = tl.program_id(0)
    if pid < TILES:
        ROWS: tl.constexpr = 1 if SWAP else 0
        WIDTH: tl.constexpr = TAPS * C
        STEPS: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K
        PER: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
        tiles_t = tl.cdiv(T_OUT, BLOCK_T)
        tile_t = pid % tiles_t
        split = pid // tiles_t % SPLIT
        tile_n = pid // tiles_t // SPLIT
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # A column past the end reads the last one: no mask between the loads and 16 bytes each.
        w_row = w_ptr + along(tl.minimum(n, N - 1).to(tl.int64) * WIDTH, 1 - ROWS)
        k = along(tl.arange(0, BLOCK_K), ROWS)
        first = split * PER
        last = tl.minimum(first + PER, STEPS)
        if PDL:
            if tile_t == 0:
                _prefetch_rows(w_row, first * BLOCK_K, WIDTH, PER * BLOCK_K, ROWS)
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
        line = lines_of_rows(t, offsets_ptr, B, UP, STRIDE, 0, SEARCH)
        slot = line_slot(line, slots_ptr, exec_ptr, offsets_ptr, B)
        opens = line_opens(line, slot, offsets_ptr, positions_ptr)
        start, _ = line_span(line, offsets_ptr, B, UP, STRIDE, 0)
        runs = (slot >= 0) & (t < T_OUT)
        if HAS_STATE:
            kept, _ = committed(state_ptr, parity_ptr, slot, stride_copy, stride_slot)
        else:
            opens = opens | True
            kept = x_ptr + slot
        kept = along(kept, ROWS)
        line_row = along(start * STRIDE, ROWS)
        begin = along((t - start) * STRIDE - HISTORY, ROWS)
        opens = along(opens, ROWS)
        inside = along(runs, ROWS)
        DTYPE: tl.constexpr = x_ptr.dtype.element_ty
        acc = tl.zeros((BLOCK_N, BLOCK_T) if SWAP else (BLOCK_T, BLOCK_N), tl.float32)
        for step in tl.range(first, last, num_stages=STAGES):
            at = step * BLOCK_K + k
            if WIDTH % BLOCK_K == 0:
                w = tl.load(w_row + at)
            else:
                w = tl.load(w_row + at, mask=at < WIDTH, other=0.0)
            x = window_block(
                x_ptr,
                stride_x,
                kept,
                line_row,
                begin,
                opens,
                inside,
                step,
                C,
                TAPS,
                HISTORY,
                ELU,
                REPLICATE,
                HAS_STATE,
                DTYPE,
                BLOCK_K,
                ROWS,
            )
            if SWAP:
                acc = tl.dot(w.to(DTYPE), x, acc, input_precision="ieee")
            else:
                acc = tl.dot(x, w.to(DTYPE), acc, input_precision="ieee")
        t_at = along(t.to(tl.int64), ROWS)
        n_at = along(n, 1 - ROWS)
        stored = along(t < T_OUT, ROWS) & (n_at < N)
        if SPLIT > 1:
            part = parts_ptr + t_at * N + n_at
            size = tl.cast(T_OUT, tl.int64) * N
            tl.store(part + split * size, acc, mask=stored)
            count = counts_ptr + tile_n * tiles_t + tile_t
            tl.debug_barrier()
            arrived = tl.atomic_add(count, 1, sem="acq_rel", scope="gpu")
            if arrived == SPLIT - 1:
                total = tl.load(part, mask=stored, other=0.0, cache_modifier=".cg")
                for other in tl.static_range(1, SPLIT):
                    total += tl.load(
                        part + other * size, mask=stored, other=0.0, cache_modifier=".cg"
                    )
                _finish(
                    total, y_ptr, bias_ptr, skip_ptr, t_at, n_at, stored, inside, stride_y,
                    stride_skip, HAS_BIAS, ELU_OUT, SKIP,
                )  # fmt: skip
                tl.store(count, 0)
        else:
            _finish(
                acc, y_ptr, bias_ptr, skip_ptr, t_at, n_at, stored, inside, stride_y, stride_skip,
                HAS_BIAS, ELU_OUT, SKIP,
            )  # fmt: skip
    else:
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        keep_tail(
            pid - TILES, x_ptr, stride_x, state_ptr, parity_ptr, offsets_ptr, slots_ptr, exec_ptr,
            positions_ptr, B, stride_copy, stride_slot, C, HISTORY, UP, ELU, REPLICATE, BLOCK_TAIL,
        )  # fmt: skip


@triton.jit
def _prefetch_rows(rows, first, WIDTH: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """Elements first to first + COUNT of rows of a matrix, asked for by lines of 128 bytes."""
    LINE: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2((COUNT + LINE - 1) // LINE)
    at = first + along(tl.arange(0, LINES), ROWS) * LINE
    prefetch_l2(rows + tl.minimum(at, WIDTH - 1))


@triton.jit
def _finish(
    total,
    y_ptr,
    bias_ptr,
    skip_ptr,
    t,
    n,
    stored,
    runs,
    stride_y,
    stride_skip,
    HAS_BIAS: tl.constexpr,
    ELU_OUT: tl.constexpr,
    SKIP: tl.constexpr,
):
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=stored, other=0.0).to(tl.float32)
    if ELU_OUT:
        total = elu(total)
    if SKIP:
        skip = tl.load(skip_ptr + t * stride_skip + n, mask=stored & runs, other=0.0)
        total += skip.to(tl.float32)
    total = tl.where(runs, total, 0.0)
    tl.store(y_ptr + t * stride_y + n, total.to(y_ptr.dtype.element_ty), mask=stored)


@triton.jit
def keep_tail(
    line,
    x_ptr,
    stride_x,
    state_ptr,
    parity_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    B,
    stride_copy,
    stride_slot,
    C: tl.constexpr,
    HISTORY: tl.constexpr,
    UP: tl.constexpr,
    ELU: tl.constexpr,
    REPLICATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The last HISTORY rows of what a line has seen, into the copy that a step writes.

    A line shorter than its history moves what is left of the old tail to the front.
    """
    slot = line_slot(line, slots_ptr, exec_ptr, offsets_ptr, B)
    if slot >= 0:
        opens = line_opens(line, slot, offsets_ptr, positions_ptr)
        start, length = line_span(line, offsets_ptr, B, UP, 1, 0)
        old, new = committed(state_ptr, parity_ptr, slot, stride_copy, stride_slot)
        for at in tl.range(0, HISTORY * C, BLOCK):
            kept = at + tl.arange(0, BLOCK)
            inside = kept < HISTORY * C
            row = length - HISTORY + kept // C
            before = row < 0
            from_x = x_ptr + (start + tl.maximum(row, 0)).to(tl.int64) * stride_x + kept % C
            read = inside & ~before
            if REPLICATE:
                read = inside
            x = tl.load(from_x, mask=read, other=0.0)
            value = x.to(tl.float32)
            if ELU:
                value = elu(value)
            past = before & ~opens
            last = tl.load(old + (row + HISTORY) * C + kept % C, mask=inside & past, other=0.0)
            value = tl.where(past, last.to(tl.float32), value)
            tl.store(new + kept, value.to(state_ptr.dtype.element_ty), mask=inside)
