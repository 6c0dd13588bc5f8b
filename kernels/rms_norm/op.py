"""rms_norm: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.checks import check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rms_norm.reference import RMSNormWeights, rms_norm_reference
from microturn.kernels.rows import RowBatch

__all__ = ["RMSNormWeights", "rms_norm"]


def rms_norm(
    x: Tensor,
    weights: RMSNormWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[..., i] = x[..., i] / sqrt(mean over i of x[..., i]**2 + eps) * gain[i], all in fp32,
    cast once.

    x   [..., D], any float dtype; heads normalise over their own D as x [T, H, D]
    out shape and dtype of x; allocated when None
    state, rows: unused; the signature is the same for every op

    Source: spec/inkling.md 1.2 (the order of cast and gain is DESIGN 2's). Raises ValueError on
    shapes.
    """
    if weights.gain.shape != x.shape[-1:]:
        check_shape("rms_norm", "gain", weights.gain, (x.shape[-1],))
    return pick("rms_norm", x.device, rms_norm_reference)(x, weights, state, rows, out=out)
