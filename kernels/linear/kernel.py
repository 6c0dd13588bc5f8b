"""The Triton kernel of linear: weights on the M side of the matrix instruction, rows on its N side.

x_ptr      [T, K], stride_x between rows
w_desc     [1, N, K], a tile a box, w_ptr the same to ask for a tile before x is complete;
           8 bits: int16, two e4m3 each, and scales_ptr [N, K_BLOCKS] exponent bytes of blocks of
           128 inputs
y_ptr      [T, N], stride_y between rows
parts_ptr  [SPLIT, T, N] fp32, what each split of K has summed (SPLIT > 1)
counts_ptr one counter for each tile of y, zero before and after (SPLIT > 1)
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.prefetch import prefetch_l2
from microturn.kernels.device.stream import weights_times_rows


@triton.jit
def linear_tiles(
    x_ptr,
    w_desc,
    w_ptr,
    scales_ptr,
    y_ptr,
    parts_ptr,
    counts_ptr,
    T,
    N,
    stride_x,
    stride_w,
    stride_y,
    K: tl.constexpr,
    K_BLOCKS: tl.constexpr,
    SPLIT: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile [BLOCK_N, BLOCK_T] of y, transposed, over one split of K.

    Every row is summed over the same blocks of K in the same order whatever T and BLOCK_T are. The
    last split to arrive at a tile adds all of them, first to last.

    AHEAD blocks of weights are asked for before x is complete.
    """
    tile_n = tl.program_id(0) // SPLIT
    split = tl.program_id(0) % SPLIT
    tile_t = tl.program_id(1)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    n_in, t_in = n < N, t < T
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    PER: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    if PDL:
        LINE: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth
        BOX: tl.constexpr = BLOCK_K // 2 if FP8 else BLOCK_K
        WIDTH: tl.constexpr = K // 2 if FP8 else K
        # The line of 128 bytes of each row and of the first blocks that this program reads.
        line = split * PER * BOX + tl.arange(0, AHEAD * BOX // LINE) * LINE
        w = w_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None] * stride_w
        prefetch_l2(w + tl.minimum(line, WIDTH - 1)[None, :])
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    acc = weights_times_rows(
        w_desc, 0, tile_n * BLOCK_N, scales_ptr + tl.minimum(n, N - 1) * K_BLOCKS,
        x_ptr + tl.minimum(t, T - 1) * stride_x, t_in, split * PER,
        K, PER, FP8, BLOCK_N, BLOCK_T, BLOCK_K, STAGES, PDL,
    )  # fmt: skip
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
