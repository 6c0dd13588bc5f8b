"""Launches the kernel of rms_norm."""

from __future__ import annotations

import triton
from torch import Tensor

from microturn.kernels.launch import launch
from microturn.kernels.rms_norm.kernel import rms_norm_rows
from microturn.kernels.rms_norm.reference import RMSNormWeights
from microturn.kernels.rows import RowBatch

TILE = 1024
"""Values of a program where a row is shorter: 8 a thread of 4 warps, 16 bytes in 16-bit types."""


def rms_norm_kernel(
    x: Tensor,
    weights: RMSNormWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `rms_norm`. Raises ValueError where values of a row lie apart."""
    y = x.new_empty(x.shape) if out is None else out
    x3, y3 = heads(x), heads(y)
    t, h, d = x3.shape
    block = triton.next_power_of_2(d)
    per = max(1, TILE // block)
    launch(
        rms_norm_rows,
        (-(-t * h // per),),
        x3,
        weights.gain,
        y3,
        t * h,
        weights.eps,
        x3.stride(0),
        x3.stride(1),
        y3.stride(0),
        y3.stride(1),
        H=h,
        D=d,
        BLOCK_D=block,
        ROWS=per,
        num_warps=max(1, min(16, block * per // 256)),
        pdl=True,
    )
    return y


def heads(x: Tensor) -> Tensor:
    """[..., D] as [T, H, D], a view: H is 1 but for three axes."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"rms_norm: a row must be dense, got strides {x.stride()}")
    if x.dim() == 3:
        return x
    return x.view(-1, 1, x.shape[-1])
