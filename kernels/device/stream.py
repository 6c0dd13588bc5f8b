"""Weights streamed past a few rows: on the M side of the matrix instruction, rows on its N side."""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.fp8 import from_e4m3_pairs
from microturn.kernels.device.numbers import power_of_two


@triton.jit
def weights_times_rows(
    w_desc,
    matrix,
    row_n,
    scale_row,
    x_row,
    x_in,
    begin,
    K: tl.constexpr,
    STEPS: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    """[BLOCK_N, BLOCK_T] fp32 of rows row_n on of one matrix and of rows of x, summed over STEPS
    blocks of K, one after another, from block `begin` on; what lies past K adds zeros.

    w_desc    [matrices, N, K] in boxes of [1, BLOCK_N, BLOCK_K], by the copy engine; FP8: int16,
              two e4m3 each, so half as many; BLOCK_K is 128
    scale_row pointers [BLOCK_N] to the exponent bytes of those rows, one for 128 inputs (FP8)
    x_row     pointers [BLOCK_T]; those that are not x_in read nothing
    """
    # 8-bit weights come two to an element.
    BOX: tl.constexpr = BLOCK_K // 2 if FP8 else BLOCK_K
    LAST: tl.constexpr = (K - 1) // 128
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    exponents = tl.zeros((BLOCK_N,), tl.uint8)
    if FP8:
        exponents = tl.load(scale_row + tl.minimum(begin, LAST))
    for i in tl.range(0, STEPS, num_stages=STAGES):
        step = begin + i
        at = step * BLOCK_K + k
        mask = x_in[None, :]
        if K % (BLOCK_K * STEPS) != 0:
            mask = mask & (at < K)[:, None]
        w = w_desc.load([matrix, row_n, step * BOX]).reshape(BLOCK_N, BOX)
        x = tl.load(
            x_row[None, :] + at[:, None], mask=mask, other=0.0, eviction_policy="evict_last"
        )
        if FP8:
            # A block of inputs has one power of two a row: it may scale the sum, exactly.
            scale = power_of_two(exponents, tl.float32)
            exponents = tl.load(scale_row + tl.minimum(step + 1, LAST))
            w = from_e4m3_pairs(w, x.dtype, ASM)
            acc += tl.dot(w, x, input_precision="ieee") * scale[:, None]
        else:
            acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc
