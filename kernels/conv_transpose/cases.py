"""Shapes of conv_transpose, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

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
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"S={self.S},L={self.L},C={self.C},N={self.N},K={self.K},stride={self.stride}"

    @property
    def _weights(self) -> int:
        return self.K * self.N * (1 if self.depthwise else self.C)

    @property
    def flops(self) -> int:
        return 2 * self.S * self.L * self._weights

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        rows = self.S * self.L * (self.C + self.stride * self.N)
        tails = 2 * self.S * (self.K - self.stride) * self.N * 4
        return (rows + self._weights + self.N * (not self.depthwise)) * itemsize + tails


CASES = (
    ConvTransposeCase(0, 0, 16, 16, 4, 2, "no lines"),
    ConvTransposeCase(1, 2, 128, 128, 4, 2, "the upsampler of the tiny decoder, a tick", True),
    ConvTransposeCase(1, 4, 256, 32, 12, 6, "first level of the tiny decoder, a tick"),
    ConvTransposeCase(3, 60, 32, 16, 8, 4, "last level, three sessions"),
    ConvTransposeCase(5, 3, 7, 9, 9, 3, "odd widths, three inputs reach into an output"),
    ConvTransposeCase(2, 4, 16, 8, 3, 3, "nothing carried: kernel as long as the stride"),
)

_MIMI = (
    (1, 512, 512, 2, "upsampler of Mimi"),
    (2, 1024, 512, 8, "Mimi's decoder, up by 8"),
    (16, 512, 256, 6, "Mimi's decoder, up by 6"),
    (96, 256, 128, 5, "Mimi's decoder, up by 5"),
    (480, 128, 64, 4, "Mimi's decoder, up by 4"),
)
BENCH_CASES = tuple(
    ConvTransposeCase(S, L, C, N, 2 * stride, stride, reason, C == N)
    for L, C, N, stride, reason in _MIMI
    for S in (1, 16, 64)
)


def make_inputs(
    case: ConvTransposeCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Lines in mid-stream (the first one at its start) over random tails in fp32; dtype fp32 unless
    given. Depthwise shapes have neither bias nor ELU, as in the codec.
    """
    import torch

    from microturn.kernels.causal_conv.cases import mid_stream
    from microturn.kernels.conv_transpose.reference import ConvTransposeWeights
    from microturn.kernels.draw import Draw

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.S * case.L, case.C)
    shape = (case.K, case.C) if case.depthwise else (case.K, case.N, case.C)
    fan_in = case.K // case.stride * (1 if case.depthwise else case.C)
    weights = ConvTransposeWeights(
        draw.normal(*shape, scale=fan_in**-0.5),
        None if case.depthwise else draw.normal(case.N),
        case.stride,
        elu=not case.depthwise,
    )
    state, rows = mid_stream(draw, case.S, case.L, weights.tail_shape, torch.float32)
    return OpInputs(x, weights, state if weights.overlap > 1 else None, rows)
