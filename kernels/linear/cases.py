"""Shapes of linear, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LinearCase:
    """T rows of width K to width N."""

    T: int
    N: int
    K: int
    reason: str

    @property
    def id(self) -> str:
        return f"T={self.T},N={self.N},K={self.K}"

    @property
    def flops(self) -> int:
        return 2 * self.T * self.N * self.K

    def bytes(self, itemsize: int) -> int:
        return (self.T * self.K + self.N * self.K + self.T * self.N) * itemsize


CASES = (
    LinearCase(0, 64, 64, "no rows: an empty tick still has a shape"),
    LinearCase(1, 64, 48, "one row: torch alone would take its matrix-vector path"),
    LinearCase(3, 160, 64, "a tick of one session"),
    LinearCase(9, 48, 80, "one row over a tile"),
    LinearCase(17, 40, 64, "prime rows, width not a multiple of 16"),
)


def make_inputs(
    case: LinearCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs of the case's shape; dtype fp32 unless given."""
    import torch

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.T, case.K, generator=g)
    weights = torch.randn(case.N, case.K, generator=g) / case.K**0.5
    return OpInputs(x.to(device, dtype), weights.to(device, dtype), None, None)
