"""RMSNorm as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microturn.kernels.rms_norm import RMSNormWeights, rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last axis; gain [size]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(size))
        self.eps = eps
        self._kept: RMSNormWeights | None = None

    def reset_parameters(self, value: float = 1.0) -> None:
        nn.init.constant_(self.gain, value)

    @property
    def weights(self) -> RMSNormWeights:
        """For ops that norm as a part of what they do."""
        kept, gain = self._kept, self.gain
        if kept is None or kept.gain is not gain:
            kept = self._kept = RMSNormWeights(gain, self.eps)
        return kept

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weights)
