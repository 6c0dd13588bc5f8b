"""conv_residual_norm in plain torch: short_conv, an addition and rms_norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from microturn.kernels.arena import Ring
from microturn.kernels.rms_norm.reference import RMSNormWeights
from microturn.kernels.rms_norm.reference import core as rms_norm
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.reference import core as short_conv
from microturn.kernels.short_conv.reference import short_conv_reference


@dataclass(frozen=True)
class SubBlock:
    """y [T, C] what a sub-block made of its input, residual [T, C] the stream it is added to."""

    y: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Stream:
    """h [T, C] the residual stream, normed [T, C] the same, normed for the next sub-block."""

    h: Tensor
    normed: Tensor


@dataclass(frozen=True)
class ConvResidualNormWeights:
    """taps [C, K] as `short_conv` takes them; norm of the next sub-block."""

    taps: Tensor
    norm: RMSNormWeights


def core(y: Tensor, residual: Tensor, weights: ConvResidualNormWeights) -> Stream:
    """y, residual [..., T, C] from position 0 on."""
    h = residual + short_conv(y, weights.taps)
    return Stream(h, rms_norm(h, weights.norm))


def conv_residual_norm_reference(
    x: SubBlock,
    weights: ConvResidualNormWeights,
    state: Ring | None,
    rows: RowBatch,
    *,
    out: Stream | None = None,
) -> Stream:
    """See `conv_residual_norm`."""
    h = x.residual + short_conv_reference(x.y, weights.taps, state, rows)
    normed = rms_norm(h, weights.norm)
    return Stream(h, normed) if out is None else Stream(out.h.copy_(h), out.normed.copy_(normed))
