"""causal_conv: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import check_carry
from microturn.kernels.causal_conv.reference import ConvWeights, causal_conv_reference
from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch

__all__ = ["ConvWeights", "causal_conv"]


def causal_conv(
    x: Tensor,
    weights: ConvWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t, n] = bias[n] + sum over k, c of f(x[t * stride - (K - stride) + k, c]) *
    weight[n, k, c].

    f is ELU or nothing (weights.elu); x before the stream is zero or f(x[0]) (weights.pad), so the
    first output needs `stride` inputs. Position 0 opens a stream.

    x       [T, Cin], packed lines, of the weight's dtype or fp32 (audio: products in fp32 then)
    state   Twice of [K - stride, Cin] a slot: the last inputs, after f (on a GPU in x's dtype);
            None: whole sequences
    rows    at the rate of x; None only without state: x is one whole sequence
    out     [T / stride, Cout], any float dtype; allocated in the weight's when None. Rows of lines
            that do not run are zeros

    Source: spec/moshi-mimi.md 3.1. Raises ValueError on shapes, on a kernel shorter than the stride
    and on lines whose rows are no multiple of it, TypeError on dtypes.
    """
    check_shape("causal_conv", "weight", weights.weight, ("Cout", "K", "Cin"))
    check_shape("causal_conv", "x", x, ("T", weights.weight.shape[2]))
    if x.dtype != torch.float32:
        check_dtype("causal_conv", "weight", weights.weight, x.dtype)
    if weights.history < 0:
        raise ValueError(
            f"causal_conv: the kernel must be at least as long as the stride, got weight "
            f"{list(weights.weight.shape)} and stride {weights.stride}"
        )
    tail = weights.tail_shape if weights.history else None
    check_carry("causal_conv", x, state, rows, tail, multiple=weights.stride)
    return pick("causal_conv", x.device, causal_conv_reference)(x, weights, state, rows, out=out)
