"""The Triton kernel of linear: weights on the M side of the matrix instruction, rows on its N side.

x_ptr      [T, K], stride_x between rows
w_ptr      [N, K]; 8 bits: scales_ptr [N, K_BLOCKS] exponent bytes of blocks of 128 inputs
y_ptr      [T, N], stride_y between rows
parts_ptr  [SPLIT, T, N] fp32, what each split of K has summed (SPLIT > 1)
counts_ptr one counter for each tile of y, zero before and after (SPLIT > 1)
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.numbers import power_of_two
from microturn.kernels.device.prefetch import prefetch_l2


@triton.jit
def linear_tiles(
    x_ptr,
    w_ptr,
    scales_ptr,
    y_ptr,
    parts_ptr,
    counts_ptr,
    T,
    N,
    stride_x,
    stride_y,
    K: tl.constexpr,
    K_BLOCKS: tl.constexpr,
    SPLIT: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile [BLOCK_N, BLOCK_T] of y, transposed, over one split of K.

    Every row is summed over the same blocks of K in the same order whatever T and BLOCK_T are. The
    last split to arrive at a tile adds all of them, first to last.
    """
    tile_n = tl.program_id(0) // SPLIT
    split = tl.program_id(0) % SPLIT
    tile_t = tl.program_id(1)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    n_in, t_in = n < N, t < T
    # A row past the end reads the last one: no mask stands between the loads and 16 bytes each.
    w_row = w_ptr + tl.where(n_in, n, N - 1).to(tl.int64)[:, None] * K
    x_row = x_ptr + tl.where(t_in, t, T - 1)[None, :] * stride_x
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    PER: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    LINE: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth  # inputs in 128 bytes
    first = split * PER
    if PDL:
        line = tl.arange(0, BLOCK_K // LINE) * LINE
        prefetch_l2(w_row + tl.minimum(first * BLOCK_K + line, K - 1)[None, :])
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for step in tl.range(first, min(first + PER, STEPS), num_stages=STAGES):
        at = step * BLOCK_K + k
        if K % BLOCK_K == 0:
            w = tl.load(w_row + at[None, :], eviction_policy="evict_first")
            x = tl.load(x_row + at[:, None], eviction_policy="evict_last")
        else:
            w = tl.load(w_row + at[None, :], mask=(at < K)[None, :], other=0.0)
            x = tl.load(x_row + at[:, None], mask=(at < K)[:, None], other=0.0)
        if FP8:
            block = step * BLOCK_K // 128
            exponents = tl.load(scales_ptr + tl.where(n_in, n, N - 1) * K_BLOCKS + block)
            w = w.to(x.dtype) * power_of_two(exponents, x.dtype)[:, None]
        acc = tl.dot(w, x, acc, input_precision="ieee")
    y = y_ptr + t.to(tl.int64)[None, :] * stride_y + n[:, None]
    inside = n_in[:, None] & t_in[None, :]
    if SPLIT == 1:
        tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        at_part = t.to(tl.int64)[None, :] * N + n[:, None]
        size = tl.cast(T, tl.int64) * N
        tl.store(parts_ptr + split * size + at_part, acc, mask=inside)
        count = counts_ptr + tile_n * tl.num_programs(1) + tile_t
        tl.debug_barrier()
        arrived = tl.atomic_add(count, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLIT - 1:
            total = tl.load(parts_ptr + at_part, mask=inside, other=0.0, cache_modifier=".cg")
            for other in tl.static_range(1, SPLIT):
                part = parts_ptr + other * size + at_part
                total += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(y, total.to(y_ptr.dtype.element_ty), mask=inside)
            tl.store(count, 0)
