"""conv_transpose: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import check_carry
from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.conv_transpose.reference import (
    ConvTransposeWeights,
    conv_transpose_reference,
)
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch

__all__ = ["ConvTransposeWeights", "conv_transpose"]


def conv_transpose(
    x: Tensor,
    weights: ConvTransposeWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[u, n] = bias[n] + sum over i, c with 0 <= u - i * stride < K of f(x[i, c]) *
    weight[u - i * stride, n, c].

    f is ELU or nothing (weights.elu); depthwise weights [K, C] take c = n only. The K - stride
    outputs past the last input are not given out: the next call finishes them. Position 0 opens a
    stream.

    x       [T, Cin] fp32 (CPU), packed lines
    state   Twice of [K / stride - 1, stride * Cout] a slot: the unfinished outputs, without bias;
            None: whole sequences
    rows    at the rate of x; None only without state: x is one whole sequence
    out     [T * stride, Cout], dtype of x; allocated when None. Rows of lines that do not run are
            zeros

    Source: spec/moshi-mimi.md 3.1. Raises ValueError on shapes and on a kernel that is no multiple
    of the stride, TypeError on dtypes.
    """
    weight = weights.weight
    if weight.dim() != 2:
        check_shape("conv_transpose", "weight", weight, ("K", "Cout", "Cin"))
    check_shape("conv_transpose", "x", x, ("T", weights.width_in))
    check_dtype("conv_transpose", "weight", weight, x.dtype)
    if weights.overlap < 1 or weight.shape[0] % weights.stride:
        raise ValueError(
            f"conv_transpose: the kernel must be a multiple of the stride, got kernel "
            f"{weight.shape[0]} and stride {weights.stride}"
        )
    check_carry(
        "conv_transpose", x, state, rows, weights.tail_shape if weights.overlap > 1 else None
    )
    return pick("conv_transpose", x.device, conv_transpose_reference)(
        x, weights, state, rows, out=out
    )
