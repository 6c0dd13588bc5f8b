"""The Triton kernel of rms_norm.

x_ptr    [T, H, D], strides stride_t and stride_h, the last axis dense
y_ptr    the same shape, strides stride_yt and stride_yh
gain_ptr [D]
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms_norm_rows(
    x_ptr,
    gain_ptr,
    y_ptr,
    N,
    eps,
    stride_t,
    stride_h,
    stride_yt,
    stride_yh,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS of the N = T * H rows of width D a program; ROWS depends on D alone, so a row is summed
    in one order whatever stands beside it.
    """
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    inside = (n < N)[:, None] & (d < D)[None, :]
    gain = tl.load(gain_ptr + d[None, :], mask=(d < D)[None, :], other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    t, h = (n // H).to(tl.int64), n % H
    at = (t * stride_t + h * stride_h)[:, None] + d[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
    y = x * scale[:, None] * gain
    at = (t * stride_yt + h * stride_yh)[:, None] + d[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
