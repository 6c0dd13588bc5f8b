"""The Triton kernels of conv_transpose: every output column a dot over the inputs that reach it.

x_ptr     [T, C], stride_x between rows
w_ptr     [OVERLAP * STRIDE, N, C]; depthwise [OVERLAP * STRIDE, N]
bias_ptr  [N] (HAS_BIAS)
y_ptr     [T * STRIDE, N], stride_y between rows
state_ptr [2, S, OVERLAP - 1, STRIDE * N], stride_copy and stride_slot between its first two axes
          (HAS_STATE): outputs not finished, without bias
parity_ptr [S] int64
offsets_ptr, slots_ptr, exec_ptr, positions_ptr, B, UP: see kernels/device/lines.py
parts_ptr  [SPLIT, ROWS, STRIDE * N] fp32, what each split has summed (SPLIT > 1)
counts_ptr one counter for each tile, zero before and after (SPLIT > 1)

A row of a tile stands for an input row and makes its STRIDE output rows, COLUMNS = STRIDE * N wide
(column p * N + n is channel n of the p-th). With a state every line has OVERLAP - 1 more rows: what
is not finished when its inputs end. ROWS counts both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.lines import committed, find_lines, opens, uncommitted
from microturn.kernels.device.numbers import elu
from microturn.kernels.device.prefetch import prefetch_l2


@triton.jit
def transpose_tiles(
    x_ptr,
    w_ptr,
    bias_ptr,
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
    ROWS,
    stride_x,
    stride_y,
    stride_copy,
    stride_slot,
    C: tl.constexpr,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    UP: tl.constexpr,
    ELU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile of BLOCK_N columns on the M side of the product and BLOCK_T rows on its N side.

    The sum over inputs runs from the oldest to the newest and begins with what the last call left,
    so that a cut in the stream changes no bit; no split holds parts of two inputs.
    """
    COLUMNS: tl.constexpr = STRIDE * N
    BLOCKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    PER: tl.constexpr = OVERLAP * BLOCKS // SPLIT
    pid = tl.program_id(0)
    tiles_t = tl.cdiv(ROWS, BLOCK_T)
    tile_t = pid % tiles_t
    split = pid // tiles_t % SPLIT
    tile_n = pid // tiles_t // SPLIT
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # A column past the end reads the last one: no mask between the loads and 16 bytes each.
    w_row = w_ptr + (tl.minimum(column, COLUMNS - 1).to(tl.int64) * C)[:, None]
    k = tl.arange(0, BLOCK_K)
    if PDL:
        if tile_t == 0:
            _prefetch(w_row, split * PER, C, COLUMNS, OVERLAP, BLOCKS, BLOCK_K, PER)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    EXTRA: tl.constexpr = OVERLAP - 1 if HAS_STATE else 0
    line, start, length, home = find_lines(
        row, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, halvings, UP, 1, EXTRA,
        HAS_STATE,
    )  # fmt: skip
    runs = (home >= 0) & (row < ROWS)
    at = row - start
    x_start = (start - line * EXTRA)[None, :]
    local = at[None, :]
    count = tl.where(runs, length, 0)[None, :]
    DTYPE: tl.constexpr = w_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    if HAS_STATE:
        kept = committed(state_ptr, home, stride_copy, stride_slot)
        kept = (kept + at * COLUMNS)[None, :] + column[:, None]
        carried = (runs & ~opens(home) & (at < OVERLAP - 1))[None, :]
        if SPLIT == 1:
            acc = tl.load(kept, mask=_in(carried, column, COLUMNS, BLOCK_N), other=0.0)
            acc = acc.to(tl.float32)
    for step in tl.range(split * PER, split * PER + PER, num_stages=STAGES):
        age = OVERLAP - 1 - step // BLOCKS
        channel = step % BLOCKS * BLOCK_K + k
        from_row = local - age
        x = x_ptr + (x_start + tl.maximum(from_row, 0)).to(tl.int64) * stride_x + channel[:, None]
        w = w_row + (age * COLUMNS * C + channel)[None, :]
        there = (from_row >= 0) & (from_row < count)
        if C % BLOCK_K == 0:
            weight = tl.load(w)
            value = tl.load(x, mask=there, other=0.0)
        else:
            weight = tl.load(w, mask=(channel < C)[None, :], other=0.0)
            value = tl.load(x, mask=there & (channel < C)[:, None], other=0.0)
        if ELU:
            value = elu(value.to(tl.float32)).to(DTYPE)
        acc = tl.dot(weight, value, acc, input_precision="ieee")
    if SPLIT > 1:
        part = parts_ptr + row.to(tl.int64)[None, :] * COLUMNS + column[:, None]
        size = tl.cast(ROWS, tl.int64) * COLUMNS
        inside = _in((row < ROWS)[None, :], column, COLUMNS, BLOCK_N)
        tl.store(part + split * size, acc, mask=inside)
        counter = counts_ptr + tile_n * tiles_t + tile_t
        tl.debug_barrier()
        arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
        finishes = arrived == SPLIT - 1
    else:
        finishes = True
    if finishes:
        if SPLIT > 1:
            if HAS_STATE:
                acc = tl.load(kept, mask=_in(carried, column, COLUMNS, BLOCK_N), other=0.0)
                acc = acc.to(tl.float32)
            else:
                acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
            for other in tl.static_range(SPLIT):
                acc += tl.load(part + other * size, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(counter, 0)
        if HAS_STATE:
            left = uncommitted(state_ptr, home, stride_copy, stride_slot)
            unfinished = left + (at - length) * COLUMNS
            tl.store(
                unfinished[None, :] + column[:, None],
                acc.to(state_ptr.dtype.element_ty),
                mask=_in((runs & (at >= length))[None, :], column, COLUMNS, BLOCK_N),
            )
        if N % BLOCK_N == 0:
            phase = tile_n * BLOCK_N // N
            n = (tile_n * BLOCK_N % N + tl.arange(0, BLOCK_N))[:, None]
        else:
            phase = (column // N)[:, None]
            n = (column % N)[:, None]
        if HAS_BIAS:
            acc += tl.load(bias_ptr + n).to(tl.float32)
        acc = tl.where(runs[None, :], acc, 0.0)
        t = (row - line * EXTRA).to(tl.int64)[None, :]
        y = y_ptr + (t * STRIDE + phase) * stride_y + n
        given = ((row < ROWS) & ((at < length) | (line == B)))[None, :]
        given = _in(given, column, COLUMNS, BLOCK_N)
        tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=given)


@triton.jit
def _in(mask, column, COLUMNS: tl.constexpr, BLOCK_N: tl.constexpr):
    """mask [1, T] where there is a column: the tile's whole shape only where it must be."""
    if COLUMNS % BLOCK_N != 0:
        mask = mask & (column < COLUMNS)[:, None]
    return mask


@triton.jit
def _prefetch(
    w_row,
    first,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PER: tl.constexpr,
):
    """The weights of blocks first to first + PER, asked for by lines of 128 bytes."""
    LINE: tl.constexpr = 1024 // w_row.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = triton.next_power_of_2(BLOCK_K // LINE)
    for step in tl.range(first, first + PER):
        age = OVERLAP - 1 - step // BLOCKS
        channel = tl.minimum(step % BLOCKS * BLOCK_K + tl.arange(0, LINES) * LINE, C - 1)
        prefetch_l2(w_row + (age * COLUMNS * C + channel)[None, :])


@triton.jit
def transpose_channels(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    state_ptr,
    parity_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    positions_ptr,
    B,
    halvings,
    ROWS,
    stride_x,
    stride_y,
    stride_copy,
    stride_slot,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
    UP: tl.constexpr,
    ELU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_T rows and BLOCK_N channels of a depthwise one."""
    COLUMNS: tl.constexpr = STRIDE * N
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n[None, :]
    n_in = (n < N)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    EXTRA: tl.constexpr = OVERLAP - 1 if HAS_STATE else 0
    line, start, length, home = find_lines(
        row, offsets_ptr, slots_ptr, exec_ptr, positions_ptr, parity_ptr, B, halvings, UP, 1, EXTRA,
        HAS_STATE,
    )  # fmt: skip
    runs = (home >= 0) & (row < ROWS)
    at = row - start
    t = (row - line * EXTRA).to(tl.int64)
    first = (start - line * EXTRA)[:, None]
    given = ((row < ROWS) & ((at < length) | (line == B)))[:, None] & n_in
    if HAS_STATE:
        kept = committed(state_ptr, home, stride_copy, stride_slot)
        carried = (runs & ~opens(home) & (at < OVERLAP - 1))[:, None] & n_in
        left = uncommitted(state_ptr, home, stride_copy, stride_slot)
        ends = (runs & (at >= length))[:, None] & n_in
    for phase in tl.static_range(STRIDE):
        acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        if HAS_STATE:
            here = (kept + at * COLUMNS + phase * N)[:, None] + column
            acc = tl.load(here, mask=carried, other=0.0).to(tl.float32)
        for back in tl.static_range(OVERLAP):
            age = OVERLAP - 1 - back
            from_row = (at - age)[:, None]
            there = (from_row >= 0) & (from_row < length[:, None]) & runs[:, None] & n_in
            x = x_ptr + (first + tl.maximum(from_row, 0)).to(tl.int64) * stride_x + column
            value = tl.load(x, mask=there, other=0.0).to(tl.float32)
            if ELU:
                value = elu(value)
            w = tl.load(w_ptr + (age * STRIDE + phase) * N + column, mask=n_in, other=0.0)
            acc += value * w.to(tl.float32)
        if HAS_STATE:
            there = (left + (at - length) * COLUMNS + phase * N)[:, None] + column
            tl.store(there, acc.to(state_ptr.dtype.element_ty), mask=ends)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + column, mask=n_in, other=0.0).to(tl.float32)
        acc = tl.where(runs[:, None], acc, 0.0)
        y = y_ptr + (t * STRIDE + phase)[:, None] * stride_y + column
        tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=given)
