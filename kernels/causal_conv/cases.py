"""Shapes of causal_conv, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.draw import Draw
    from microturn.kernels.rows import RowBatch


@dataclass(frozen=True)
class ConvCase:
    """S lines of L rows of C channels to N, kernel K, one row out for each `stride` in."""

    S: int
    L: int
    C: int
    N: int
    K: int
    stride: int
    reason: str
    replicate: bool = False
    elu: bool = True
    bias: bool = True
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"S={self.S},L={self.L},C={self.C},N={self.N},K={self.K},stride={self.stride}"

    @property
    def flops(self) -> int:
        return 2 * self.S * self.L // self.stride * self.N * self.C * self.K

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        rows = self.S * (self.L * self.C + self.L // self.stride * self.N)
        tails = 2 * self.S * (self.K - self.stride) * self.C
        return (rows + tails + self.N * (self.C * self.K + self.bias)) * itemsize


CASES = (
    ConvCase(0, 0, 16, 16, 3, 1, "no lines"),
    ConvCase(1, 4, 128, 96, 7, 1, "first convolution of the tiny decoder, a tick", elu=False),
    ConvCase(1, 600, 16, 1, 3, 1, "last convolution of the tiny decoder: one channel out"),
    ConvCase(3, 15, 32, 64, 10, 5, "a strided level of the encoder"),
    ConvCase(2, 4, 48, 48, 4, 2, "the downsampler", replicate=True, elu=False, bias=False),
    ConvCase(5, 3, 7, 9, 4, 1, "prime rows, odd widths, fewer rows than history"),
    ConvCase(2, 4, 16, 16, 2, 2, "nothing carried: kernel as long as the stride"),
)


SESSIONS = (1, 16, 64)
"""Of the bench cases, one 80 ms frame each."""


def _mimi(
    L: int, C: int, N: int, K: int, reason: str, stride: int = 1, elu: bool = True
) -> tuple[ConvCase, ...]:
    return tuple(ConvCase(S, L, C, N, K, stride, reason, elu=elu) for S in SESSIONS)


BENCH_CASES = (
    *_mimi(2, 512, 1024, 7, "first convolution of Mimi's decoder", elu=False),
    *_mimi(1920, 64, 1, 3, "last convolution of Mimi's decoder"),
    *_mimi(1920, 1, 64, 7, "first convolution of Mimi's encoder", elu=False),
    *_mimi(1920, 64, 128, 8, "Mimi's encoder, down by 4", 4),
    *_mimi(480, 128, 256, 10, "Mimi's encoder, down by 5", 5),
    *_mimi(96, 256, 512, 12, "Mimi's encoder, down by 6", 6),
    *_mimi(16, 512, 1024, 16, "Mimi's encoder, down by 8", 8),
    *_mimi(2, 1024, 512, 3, "last convolution of Mimi's encoder"),
    *(
        ConvCase(S, 2, 512, 512, 4, 2, "Mimi's downsampler", replicate=True, elu=False, bias=False)
        for S in SESSIONS
    ),
)


def make_inputs(
    case: ConvCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Lines in mid-stream (the first one at its start) over random tails; dtype fp32 unless
    given.
    """
    from microturn.kernels.causal_conv.reference import ConvWeights
    from microturn.kernels.draw import Draw

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.S * case.L, case.C)
    weights = ConvWeights(
        draw.normal(case.N, case.K, case.C, scale=(case.C * case.K) ** -0.5),
        draw.normal(case.N) if case.bias else None,
        case.stride,
        "replicate" if case.replicate else "zero",
        case.elu,
    )
    state, rows = mid_stream(draw, case.S, case.L, weights.tail_shape)
    return OpInputs(x, weights, state if weights.history else None, rows)


def mid_stream(
    draw: Draw,
    num_lines: int,
    length: int,
    tail: tuple[int, int],
    dtype: torch.dtype | None = None,
) -> tuple[Twice, RowBatch]:
    """Random tails in two slots more than there are lines, parities mixed; lines of `length` rows,
    the first at position 0.
    """
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.rows import RowBatch

    slots = num_lines + 2
    data = draw.normal(2, slots, *tail, dtype=dtype)
    parity = torch.arange(slots, device=draw.device) % 2
    starts = [i * 2 * length for i in range(num_lines)]
    order = [slots - 1 - i for i in range(num_lines)]
    rows = RowBatch.build(order, [length] * num_lines, starts, device=draw.device)
    return Twice(data, parity), rows
