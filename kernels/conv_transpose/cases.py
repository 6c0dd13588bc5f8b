"""Shapes of conv_transpose, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ConvTransposeCase:
    """S lines of L rows of C channels to N, kernel K, `stride` rows out for each one in.

    depthwise: a kernel for each channel, N = C.
    """

    S: int
    L: int
    C: int
    N: int
    K: int
    stride: int
    reason: str
    depthwise: bool = False

    @property
    def id(self) -> str:
        return f"S={self.S},L={self.L},C={self.C},N={self.N},K={self.K},stride={self.stride}"

    @property
    def _weights(self) -> int:
        return self.K * self.N * (1 if self.depthwise else self.C)

    @property
    def flops(self) -> int:
        return 2 * self.S * self.L * self._weights

    def bytes(self, itemsize: int) -> int:
        rows = self.S * self.L * (self.C + self.stride * self.N)
        tails = 2 * self.S * (self.K - self.stride) * self.N
        return (rows + tails + self._weights + self.N * (not self.depthwise)) * itemsize


CASES = (
    ConvTransposeCase(0, 0, 16, 16, 4, 2, "no lines"),
    ConvTransposeCase(1, 2, 128, 128, 4, 2, "the upsampler of the tiny decoder, a tick", True),
    ConvTransposeCase(1, 4, 256, 128, 12, 6, "first level of the tiny decoder, a tick"),
    ConvTransposeCase(3, 60, 32, 16, 8, 4, "last level, three sessions"),
    ConvTransposeCase(5, 3, 7, 9, 9, 3, "odd widths, three inputs reach into an output"),
    ConvTransposeCase(2, 4, 16, 8, 3, 3, "nothing carried: kernel as long as the stride"),
)


def make_inputs(
    case: ConvTransposeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Lines in mid-stream (the first one at its start) over random tails; dtype fp32 unless
    given. Depthwise shapes have neither bias nor ELU, as in the codec.
    """
    import torch

    from microturn.kernels.causal_conv.cases import mid_stream
    from microturn.kernels.conv_transpose.reference import ConvTransposeWeights

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.S * case.L, case.C, generator=g)
    shape = (case.K, case.C) if case.depthwise else (case.K, case.N, case.C)
    fan_in = case.K // case.stride * (1 if case.depthwise else case.C)
    weight = torch.randn(*shape, generator=g) / fan_in**0.5
    bias = None if case.depthwise else torch.randn(case.N, generator=g).to(device, dtype)
    weights = ConvTransposeWeights(
        weight.to(device, dtype), bias, case.stride, elu=not case.depthwise
    )
    state, rows = mid_stream(case.S, case.L, weights.tail_shape, g, dtype, device)
    return OpInputs(x.to(device, dtype), weights, state if weights.overlap > 1 else None, rows)
