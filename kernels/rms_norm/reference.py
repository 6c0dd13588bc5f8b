"""rms_norm in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch


@dataclass(frozen=True)
class RMSNormWeights:
    """gain [D]; eps is added to the mean square."""

    gain: Tensor
    eps: float


def core(x: Tensor, weights: RMSNormWeights) -> Tensor:
    """x [..., D] -> [..., D], same dtype."""
    gain = weights.gain
    if x.dtype == gain.dtype == torch.float32:
        return torch.rms_norm(x, gain.shape, gain, weights.eps)
    return torch.rms_norm(x.float(), gain.shape, gain.float(), weights.eps).to(x.dtype)


def rms_norm_reference(
    x: Tensor,
    weights: RMSNormWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `rms_norm`."""
    y = core(x, weights)
    return y if out is None else out.copy_(y)
