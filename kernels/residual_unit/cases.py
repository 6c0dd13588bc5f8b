"""Shapes of residual_unit, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ResidualUnitCase:
    """S lines of L rows of C channels, H inside, kernel K."""

    S: int
    L: int
    C: int
    H: int
    K: int
    reason: str

    @property
    def id(self) -> str:
        return f"S={self.S},L={self.L},C={self.C},H={self.H},K={self.K}"

    @property
    def _weights(self) -> int:
        return self.H * self.C * (self.K + 1)

    @property
    def flops(self) -> int:
        return 2 * self.S * self.L * self._weights

    def bytes(self, itemsize: int) -> int:
        rows = 2 * self.S * (self.L + self.K - 1) * self.C
        return (rows + self._weights + self.H + self.C) * itemsize


CASES = (
    ResidualUnitCase(0, 0, 16, 16, 3, "no lines"),
    ResidualUnitCase(1, 2400, 16, 16, 3, "last level of the tiny decoder, a tick"),
    ResidualUnitCase(2, 24, 128, 128, 3, "first level, two sessions"),
    ResidualUnitCase(1, 40, 64, 32, 3, "compressed inside, as in the released codec"),
    ResidualUnitCase(5, 3, 9, 7, 5, "prime rows, odd widths, fewer rows than history"),
)


def make_inputs(
    case: ResidualUnitCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Lines in mid-stream (the first one at its start) over random tails; dtype fp32 unless
    given.
    """
    import torch

    from microturn.kernels.causal_conv.cases import mid_stream
    from microturn.kernels.causal_conv.reference import ConvWeights
    from microturn.kernels.residual_unit.reference import ResidualUnitWeights

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)

    def conv(width: int, channels: int, kernel: int) -> ConvWeights:
        weight = torch.randn(width, kernel, channels, generator=g) / (channels * kernel) ** 0.5
        bias = torch.randn(width, generator=g)
        return ConvWeights(weight.to(device, dtype), bias.to(device, dtype), elu=True)

    x = torch.randn(case.S * case.L, case.C, generator=g)
    weights = ResidualUnitWeights(conv(case.H, case.C, case.K), conv(case.C, case.H, 1))
    state, rows = mid_stream(case.S, case.L, weights.tail_shape, g, dtype, device)
    return OpInputs(x.to(device, dtype), weights, state, rows)
