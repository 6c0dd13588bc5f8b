"""Shapes of short_conv, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch

    from microturn.kernels.arena import Ring
    from microturn.kernels.draw import Draw


@dataclass(frozen=True)
class ShortConvCase:
    """Lines of `counts[b]` rows from position `starts[b]` on, C channels, K taps, rings for lines
    of `max_rows`.
    """

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    C: int
    K: int
    max_rows: int
    reason: str
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
        return (2 * self.K + 1) * self.T * self.C

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """x, out, the ring's new rows, the K - 1 old taps of each line, the weights."""
        old = sum(min(self.K - 1, start) for start in self.starts)
        return (3 * self.T + old + self.K) * self.C * itemsize


CASES = (
    ShortConvCase((), (), 64, 4, 8, "no rows"),
    ShortConvCase((1,), (0,), 64, 4, 8, "a session's first row: three taps do not exist"),
    ShortConvCase((3,), (21,), 256, 4, 8, "a tick of one session over the residual stream"),
    ShortConvCase((5, 1, 3), (2, 40, 0), 128, 4, 8, "rows out of step, one of them fresh"),
    ShortConvCase((13,), (14,), 80, 4, 13, "prime rows that wrap around the ring"),
    ShortConvCase((64,), (128_000,), 48, 4, 64, "a full append pass, late in a long session"),
    ShortConvCase((2,), (1,), 16, 2, 8, "two taps"),
    ShortConvCase((2,), (9,), 1040, 4, 8, "a few channels over a program"),
)

BENCH_CASES = (
    *(
        ShortConvCase((n,) * b, (9_000,) * b, 4096, 4, 64, "residual stream of interaction-small")
        for b, n in ((1, 1), (1, 3), (64, 1), (64, 3))
    ),
    ShortConvCase((3,), (9_000,), 1536, 4, 64, "residual stream of interaction-mini"),
)


def make_inputs(
    case: ShortConvCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs; line b runs in slot b of rings that hold NaN wherever no input was."""
    from microturn.kernels.draw import Draw
    from microturn.kernels.rows import RowBatch

    draw = Draw(seed, dtype, device)
    x = draw.normal(case.T, case.C)
    weights = draw.normal(case.C, case.K, scale=case.K**-0.5)
    ring = make_ring(draw, case.C, case.K, case.max_rows, case.starts)
    slots = range(len(case.counts))
    return OpInputs(
        x, weights, ring, RowBatch.build(slots, case.counts, case.starts, device=device)
    )


def make_ring(
    draw: Draw, channels: int, kernel_size: int, max_rows: int, starts: Sequence[int]
) -> Ring:
    """The taps that a line at each of `starts` will read, NaN everywhere else."""
    import torch

    from microturn.kernels.arena import Ring
    from microturn.kernels.short_conv.reference import short_conv_spec

    capacity = short_conv_spec("short_conv", channels, kernel_size, max_rows, "rows").capacity
    shape = (len(starts) + 1, capacity, channels)
    ring = Ring(torch.empty(shape, dtype=draw.dtype, device=draw.device))
    if draw.meta:
        return ring
    ring.data.fill_(float("nan"))
    for slot, start in enumerate(starts):
        past = torch.arange(max(0, start - kernel_size + 1), start, device=draw.device)
        ring.write(torch.full_like(past, slot), past, draw.normal(len(past), channels))
    return ring
