"""Shapes of rvq_quantize, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantizeCase:
    """T latents of width D to codes of Q books of N rows of width d."""

    T: int
    D: int
    Q: int
    N: int
    d: int
    reason: str

    @property
    def id(self) -> str:
        return f"T={self.T},D={self.D},Q={self.Q},N={self.N},d={self.d}"

    @property
    def flops(self) -> int:
        return self.T * (4 * self.D * self.d + 2 * self.Q * self.N * self.d)

    def bytes(self, itemsize: int) -> int:
        weights = 2 * self.D * self.d + self.Q * self.N * (self.d + 1)
        return (self.T * self.D + weights) * itemsize + 8 * self.T * self.Q


CASES = (
    QuantizeCase(0, 32, 4, 32, 16, "no frames"),
    QuantizeCase(2, 128, 4, 256, 64, "the tiny codec, a tick of one session"),
    QuantizeCase(9, 48, 8, 2048, 32, "books of the released size, one row over a tile"),
    QuantizeCase(5, 20, 3, 7, 24, "odd sizes"),
)


def make_inputs(
    case: QuantizeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian latents and books; dtype fp32 unless given."""
    import torch

    from microturn.kernels.rvq_quantize.reference import QuantizeWeights, half_norms

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.T, case.D, generator=g)
    tables = torch.randn(case.Q, case.N, case.d, generator=g).to(device, dtype)
    semantic, acoustic = torch.randn(2, case.d, case.D, generator=g) / case.D**0.5
    weights = QuantizeWeights(
        tables, half_norms(tables), semantic.to(device, dtype), acoustic.to(device, dtype)
    )
    return OpInputs(x.to(device, dtype), weights, None, None)
