"""conv_residual_norm: the public function."""

from __future__ import annotations

from microturn.kernels.arena import Ring
from microturn.kernels.checks import Passed, check_rows, check_shape
from microturn.kernels.conv_residual_norm.reference import (
    ConvResidualNormWeights,
    Stream,
    SubBlock,
    conv_residual_norm_reference,
)
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.op import check_ring

OP = "conv_residual_norm"

_passed = Passed()


def conv_residual_norm(
    x: SubBlock,
    weights: ConvResidualNormWeights,
    state: Ring | None,
    rows: RowBatch,
    *,
    out: Stream | None = None,
) -> Stream:
    """h = residual + short_conv(y, taps), normed = rms_norm(h): the end of a sub-block and the
    beginning of the next.

    x       SubBlock: y and residual [T, C], any float dtype
    weights ConvResidualNormWeights: taps [C, K], gain [C]
    state   Ring of raw y [S, capacity, C], see `short_conv`; None: whole sequences, differentiable
    rows    what each row is; rows of lines that do not run convolve to zeros: h is their residual
    out     Stream of h in residual's dtype and normed; allocated when None

    Sums are fp32; the norm is of h as it is stored. Source: spec/inkling.md 1.2. Raises ValueError
    on shapes, and on a line with more rows than the ring can take.
    """
    y, residual, taps, gain = x.y, x.residual, weights.taps, weights.norm.gain
    data = None if state is None else state.data.shape
    seen = y.shape, residual.shape, taps.shape, gain.shape, data
    if seen not in _passed:
        channels = residual.shape[-1]
        check_shape(OP, "residual", residual, ("T", channels))
        check_shape(OP, "y", y, tuple(residual.shape))
        check_shape(OP, "taps", taps, (channels, "K"))
        check_shape(OP, "gain", gain, (channels,))
        if state is not None:
            check_shape(OP, "state", state.data, ("S", "capacity", channels))
        _passed.add(seen)
    check_rows(OP, rows, y.shape[0])
    if state is not None:
        check_ring(OP, state, taps.shape[1], rows)
        run = pick(OP, x.y.device, conv_residual_norm_reference)
    else:
        run = conv_residual_norm_reference
    return run(x, weights, state, rows, out=out)
