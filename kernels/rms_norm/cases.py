"""Shapes of rms_norm, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RMSNormCase:
    """T rows of H heads of width D (H = 1: the residual stream)."""

    T: int
    H: int
    D: int
    reason: str

    @property
    def id(self) -> str:
        return f"T={self.T},H={self.H},D={self.D}"

    @property
    def flops(self) -> int:
        return 4 * self.T * self.H * self.D

    def bytes(self, itemsize: int) -> int:
        return (2 * self.T * self.H * self.D + self.D) * itemsize


CASES = (
    RMSNormCase(0, 1, 64, "no rows"),
    RMSNormCase(3, 1, 256, "a tick of one session over the residual stream"),
    RMSNormCase(5, 4, 64, "head norms of q and k"),
    RMSNormCase(13, 1, 80, "prime rows, width not a power of two"),
)


def make_inputs(
    case: RMSNormCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs of the case's shape; dtype fp32 unless given."""
    import torch

    from microturn.kernels.rms_norm.reference import RMSNormWeights

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.T, case.H, case.D, generator=g).squeeze(1)
    gain = 1 + 0.1 * torch.randn(case.D, generator=g)
    return OpInputs(x.to(device, dtype), RMSNormWeights(gain.to(device), 1e-6), None, None)
