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

from microturn.kernels.device.lines import committed, find_lines, line_facts, opens, uncommitted
from microturn.kernels.device.numbers import elu
from microturn.kernels.device.prefetch import prefetch_l2
from microturn.kernels.device.window import window_block


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
    halvings,
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
    SPLIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile of y over one split of the window, weights on the M side of the product and rows on
    its N side; or the tail of a line.

    Every row is summed over the same blocks in the same order whatever else is in the batch. The
    last split to arrive at a tile adds all of them, first to last.
    """
    HISTORY: tl.constexpr = TAPS - STRIDE
    pid = tl.program_id(0)
    if pid < TILES:
        WIDTH: tl.constexpr = TAPS * C
        STEPS: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K
        PER: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
        tiles_t = tl.cdiv(T_OUT, BLOCK_T)
        tile_t = pid % tiles_t
        split = pid // tiles_t % SPLIT
        tile_n = pid // tiles_t // SPLIT
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        # A column past the end reads the last one: no mask between the loads and 16 bytes each.
        w_row = w_ptr + (tl.minimum(n, N - 1).to(tl.int64) * WIDTH)[:, None]
        k = tl.arange(0, BLOCK_K)[None, :]
        first = split * PER
        last = tl.minimum(first + PER, STEPS)
        if PDL:
            if tile_t == 0:
                _prefetch_rows(w_row, first * BLOCK_K, WIDTH, PER * BLOCK_K)
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
        _, start, _, home = find_lines(
            t, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, halvings, UP,
            STRIDE, 0, HAS_STATE,
        )  # fmt: skip
        start = start[None, :]
        home = home[None, :]
        runs = (home >= 0) & (t < T_OUT)[None, :]
        begin = (t[None, :] - start) * STRIDE - HISTORY
        kept = committed(state_ptr, home, stride_copy, stride_slot) if HAS_STATE else x_ptr
        DTYPE: tl.constexpr = x_ptr.dtype.element_ty
        acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
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
                start * STRIDE,
                begin,
                opens(home),
                runs,
                step,
                C,
                TAPS,
                HISTORY,
                ELU,
                REPLICATE,
                HAS_STATE,
                DTYPE,
                BLOCK_K,
            )
            acc = tl.dot(w.to(DTYPE), x, acc, input_precision="ieee")
        t_at = t.to(tl.int64)[None, :]
        n_at = n[:, None]
        stored = (t < T_OUT)[None, :] & (n_at < N)
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
                    total, y_ptr, bias_ptr, skip_ptr, t_at, n_at, stored, runs, stride_y,
                    stride_skip, HAS_BIAS, ELU_OUT, SKIP,
                )  # fmt: skip
                tl.store(count, 0)
        else:
            _finish(
                acc, y_ptr, bias_ptr, skip_ptr, t_at, n_at, stored, runs, stride_y, stride_skip,
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
def _prefetch_rows(rows, first, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Elements first to first + COUNT of rows of a matrix, asked for by lines of 128 bytes."""
    LINE: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2((COUNT + LINE - 1) // LINE)
    at = first + tl.arange(0, LINES)[None, :] * LINE
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
    start, length, home = line_facts(
        line, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, UP, 1, 0, True
    )
    if home >= 0:
        old = committed(state_ptr, home, stride_copy, stride_slot)
        new = uncommitted(state_ptr, home, stride_copy, stride_slot)
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
            past = before & ~opens(home)
            last = tl.load(old + (row + HISTORY) * C + kept % C, mask=inside & past, other=0.0)
            value = tl.where(past, last.to(tl.float32), value)
            tl.store(new + kept, value.to(state_ptr.dtype.element_ty), mask=inside)
