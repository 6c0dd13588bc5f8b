"""Products of persistent kernels: weights on the matrix instruction's M side, rows on its N side.

Sums over a column's inputs and outputs go through the matrix unit too: it adds an element's terms
in one order whatever stands beside it, while a reduction in registers follows a layout that may
change with the tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.prefetch import prefetch_l2


@triton.jit
def product(
    w_rows,
    x_rows,
    K: tl.constexpr,
    R: tl.constexpr,
    T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """[R, T] fp32: row r of the weights (from w_rows[r] on) times row t (from x_rows[t] on)."""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((R, T), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = start + k
        if K % BLOCK_K == 0:
            w = tl.load(w_rows[:, None] + at[None, :])
            x = tl.load(x_rows[None, :] + at[:, None], cache_modifier=".cg")
        else:
            w = tl.load(w_rows[:, None] + at[None, :], mask=(at < K)[None, :], other=0.0)
            x = tl.load(
                x_rows[None, :] + at[:, None],
                mask=(at < K)[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
        acc = tl.dot(w, x, acc, input_precision="ieee")
    return acc


@triton.jit
def group_sums(values, R: tl.constexpr):
    """[16, T]: row g is the sum of rows 16 g to 16 g + 15 of values [R, T] fp32; R at most 256."""
    group = tl.arange(0, 16)[:, None]
    row = tl.arange(0, R)[None, :]
    picked = (row // 16 == group).to(tl.float32)
    return tl.dot(picked, values, input_precision="tf32x3")


@triton.jit
def column_totals(sums_ptr, t, t_in, stride, GROUPS: tl.constexpr, POW_GROUPS: tl.constexpr):
    """[T] fp32: the sum over g < GROUPS of sums[g, t], sums_ptr rows of `stride`."""
    g = tl.arange(0, POW_GROUPS)
    inside = (g < GROUPS)[:, None] & t_in[None, :]
    at = sums_ptr + g[:, None] * stride + t[None, :]
    sums = tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
    ones = tl.full((16, POW_GROUPS), 1.0, tl.float32)
    total = tl.dot(ones, sums, input_precision="tf32x3")
    first = (tl.arange(0, 16) == 0)[:, None]
    return tl.sum(tl.where(first, total, 0.0), 0)


@triton.jit
def prefetch_share(ptr, size, program, programs, LANES: tl.constexpr):
    """This program's share of `size` contiguous values into L2, a cache line a lane."""
    LINE: tl.constexpr = 1024 // ptr.dtype.element_ty.primitive_bitwidth
    lane = tl.arange(0, LANES) * LINE
    for start in tl.range(program * LANES * LINE, size, programs * LANES * LINE):
        prefetch_l2(ptr + tl.minimum(start + lane, size - 1))
