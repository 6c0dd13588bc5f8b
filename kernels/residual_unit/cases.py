"""Shapes of residual_unit, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

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
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"S={self.S},L={self.L},C={self.C},H={self.H},K={self.K}"

    @property
    def _weights(self) -> int:
        return self.H * self.C * (self.K + 1)

    @property
    def flops(self) -> int:
        return 2 * self.S * self.L * self._weights

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        rows = 2 * self.S * (self.L + self.K - 1) * self.C
        return (rows + self._weights + self.H + self.C) * itemsize


CASES = (
    ResidualUnitCase(0, 0, 16, 16, 3, "no lines"),
    ResidualUnitCase(1, 600, 16, 16, 3, "last level of the tiny decoder"),
    ResidualUnitCase(2, 24, 128, 128, 3, "first level, two sessions"),
    ResidualUnitCase(1, 40, 64, 32, 3, "compressed inside, as in the released codec"),
    ResidualUnitCase(5, 3, 9, 7, 5, "prime rows, odd widths, fewer rows than history"),
)

BENCH_CASES = tuple(
    ResidualUnitCase(S, L, C, C // 2, 3, f"Mimi, {C} channels")
    for L, C in ((16, 512), (96, 256), (480, 128), (1920, 64))
    for S in (1, 16, 64)
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
    from microturn.kernels.causal_conv.cases import mid_stream
    from microturn.kernels.causal_conv.reference import ConvWeights
    from microturn.kernels.draw import Draw
    from microturn.kernels.residual_unit.reference import ResidualUnitWeights

    draw = Draw(seed, dtype, device)

    def conv(width: int, channels: int, kernel: int) -> ConvWeights:
        weight = draw.normal(width, kernel, channels, scale=(channels * kernel) ** -0.5)
        return ConvWeights(weight, draw.normal(width), elu=True)

    x = draw.normal(case.S * case.L, case.C)
    weights = ResidualUnitWeights(conv(case.H, case.C, case.K), conv(case.C, case.H, 1))
    state, rows = mid_stream(draw, case.S, case.L, weights.tail_shape)
    return OpInputs(x, weights, state, rows)
