"""Shapes of rms_norm, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RMSNormCase:
    """T rows of H heads of width D (H = 1: the residual stream)."""

    T: int
    H: int
    D: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"T={self.T},H={self.H},D={self.D}"

    @property
    def flops(self) -> int:
        return 4 * self.T * self.H * self.D

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        return (2 * self.T * self.H * self.D + self.D) * itemsize


CASES = (
    RMSNormCase(0, 1, 64, "no rows"),
    RMSNormCase(3, 1, 256, "a tick of one session over the residual stream"),
    RMSNormCase(5, 4, 64, "head norms of q and k"),
    RMSNormCase(13, 1, 80, "prime rows, width not a power of two"),
    RMSNormCase(2, 9, 128, "one row over a program's eight, a program across two tokens"),
    RMSNormCase(1, 1, 2048, "a row wider than a program's shortest"),
)

BENCH_CASES = (
    *(RMSNormCase(T, 1, 4096, "embeddings of interaction-small") for T in (1, 4, 64, 256)),
    RMSNormCase(3, 1, 1536, "embeddings of interaction-mini"),
    RMSNormCase(64, 1, 1024, "the depth head of 64 sessions"),
    RMSNormCase(64, 32, 128, "heads of interaction-small"),
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

    from microturn.kernels.draw import Draw
    from microturn.kernels.rms_norm.reference import RMSNormWeights

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.T, case.H, case.D).squeeze(1)
    gain = 1 + draw.normal(case.D, scale=0.1, dtype=torch.float32)
    return OpInputs(x, RMSNormWeights(gain, 1e-6), None, None)
