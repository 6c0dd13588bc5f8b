"""Launches the kernel of conv_residual_norm."""

from __future__ import annotations

import triton

from microturn.kernels.arena import Ring
from microturn.kernels.conv_residual_norm.kernel import conv_residual_norm_rows
from microturn.kernels.conv_residual_norm.reference import (
    ConvResidualNormWeights,
    Stream,
    SubBlock,
)
from microturn.kernels.launch import launch
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.launch import conv_arguments


def conv_residual_norm_kernel(
    x: SubBlock,
    weights: ConvResidualNormWeights,
    state: Ring | None,
    rows: RowBatch,
    *,
    out: Stream | None = None,
) -> Stream:
    """See `conv_residual_norm`. Raises NotImplementedError without state.

    A row is one program whatever T is, so that it is summed in one order; 8 values a thread, so
    that every load is of 16 bytes and all of a row's are under way at once.
    """
    if state is None:
        raise NotImplementedError("whole sequences without state are torch's: call the reference")
    if out is None:
        shape = x.residual.shape
        out = Stream(x.residual.new_empty(shape), x.residual.new_empty(shape))
    given = conv_arguments("conv_residual_norm", x.y, weights.taps, state, rows)
    dense = (x.residual, out.h, out.normed)
    if any(t.stride(1) != 1 for t in dense):
        raise ValueError(
            f"conv_residual_norm: rows of residual and out must be dense, got strides "
            f"{[t.stride() for t in dense]}"
        )
    block = triton.next_power_of_2(x.y.shape[1])
    launch(
        conv_residual_norm_rows,
        (x.y.shape[0],),
        x.y,
        x.residual,
        given.taps,
        weights.norm.gain,
        state.data,
        out.h,
        out.normed,
        *given.rows,
        rows.num_lines,
        state.capacity,
        weights.norm.eps,
        x.y.stride(0),
        *(t.stride(0) for t in dense),
        BLOCK_C=block,
        num_warps=max(1, min(16, block // 256)),
        pdl=True,
        **given.constants,
    )
    return out
