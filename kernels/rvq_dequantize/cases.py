"""Shapes of rvq_dequantize, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DequantizeCase:
    """T frames of q codes from Q books of N rows of width d, to width D."""

    T: int
    q: int
    Q: int
    N: int
    d: int
    D: int
    reason: str

    @property
    def id(self) -> str:
        return f"T={self.T},q={self.q},Q={self.Q},N={self.N},d={self.d},D={self.D}"

    @property
    def flops(self) -> int:
        return self.T * (self.q * self.d + 4 * self.d * self.D)

    def bytes(self, itemsize: int) -> int:
        values = self.T * self.q * self.d + 2 * self.d * self.D + self.T * self.D
        return values * itemsize + 8 * self.T * self.q


CASES = (
    DequantizeCase(0, 4, 4, 32, 16, 32, "no frames"),
    DequantizeCase(2, 4, 4, 256, 64, 128, "the tiny codec, a tick of one session"),
    DequantizeCase(3, 8, 32, 64, 32, 48, "8 of 32 books, as the released codec runs"),
    DequantizeCase(5, 1, 3, 7, 24, 20, "the semantic book alone, odd sizes"),
)


def make_inputs(
    case: DequantizeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Uniform codes, Gaussian books; dtype fp32 unless given."""
    import torch

    from microturn.kernels.rvq_dequantize.reference import DequantizeWeights

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(case.N, (case.T, case.q), generator=g)
    tables = torch.randn(case.Q, case.N, case.d, generator=g)
    semantic, acoustic = torch.randn(2, case.D, case.d, generator=g) / case.d**0.5
    weights = DequantizeWeights(
        tables.to(device, dtype), semantic.to(device, dtype), acoustic.to(device, dtype)
    )
    return OpInputs(codes.to(device), weights, None, None)
