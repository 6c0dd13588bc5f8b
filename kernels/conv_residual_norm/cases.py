"""Shapes of conv_residual_norm, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ConvResidualNormCase:
    """Lines of `counts[b]` rows from position `starts[b]` on, C channels, K taps, rings for lines
    of `max_rows`; lines of `idle` do not run.
    """

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    C: int
    reason: str
    K: int = 4
    max_rows: int = 64
    idle: tuple[int, ...] = ()
    bar: Bar | None = None

    @property
    def T(self) -> int:
        return sum(self.counts)

    @property
    def id(self) -> str:
        position = max(self.starts, default=0)
        return f"B={len(self.counts)},T={self.T},C={self.C},K={self.K},pos={position}"

    @property
    def flops(self) -> int:
        return (2 * self.K + 6) * self.T * self.C

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """y, residual, h, normed, the ring's new rows, K - 1 old taps of each line, the weights."""
        old = sum(min(self.K - 1, start) for start in self.starts)
        return (5 * self.T + old + self.K + 1) * self.C * itemsize


CASES = (
    ConvResidualNormCase((), (), 64, "no rows"),
    ConvResidualNormCase((1,), (0,), 64, "a session's first row: three taps do not exist"),
    ConvResidualNormCase((3,), (21,), 256, "a tick of interaction-tiny"),
    ConvResidualNormCase((5, 1, 3), (2, 40, 0), 128, "rows out of step, one of them fresh"),
    ConvResidualNormCase(
        (13,), (14,), 80, "prime rows that wrap around the ring, width no power of two", max_rows=13
    ),
    ConvResidualNormCase((2, 3, 4), (9, 9, 9), 48, "one line in the middle is paused", idle=(1,)),
    ConvResidualNormCase((1, 1), (128_000, 7), 1536, "interaction-mini, late in a long session"),
    ConvResidualNormCase((2,), (1,), 16, "two taps", K=2),
)

BENCH_CASES = (
    *(
        ConvResidualNormCase((n,) * b, (9_000,) * b, 4096, "interaction-small")
        for b, n in ((1, 1), (1, 3), (16, 1), (64, 1), (64, 3), (4, 64))
    ),
    ConvResidualNormCase((3,), (9_000,), 1536, "interaction-mini, a tick of one session"),
)


def make_inputs(
    case: ConvResidualNormCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs; line b runs in slot b of rings that hold NaN wherever no input was."""
    import torch

    from microturn.kernels.conv_residual_norm.reference import ConvResidualNormWeights, SubBlock
    from microturn.kernels.draw import Draw
    from microturn.kernels.rms_norm.reference import RMSNormWeights
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.short_conv.cases import make_ring

    draw = Draw(seed, dtype, device)
    x = SubBlock(draw.normal(case.T, case.C), draw.normal(case.T, case.C))
    taps = draw.normal(case.C, case.K, scale=case.K**-0.5)
    gain = 1 + draw.normal(case.C, scale=0.1, dtype=torch.float32)
    weights = ConvResidualNormWeights(taps, RMSNormWeights(gain, 1e-6))
    ring = make_ring(draw, case.C, case.K, case.max_rows, case.starts)
    lines = range(len(case.counts))
    run = [line not in case.idle for line in lines]
    rows = RowBatch.build(lines, case.counts, case.starts, exec_mask=run, device=device)
    return OpInputs(x, weights, ring, rows)
