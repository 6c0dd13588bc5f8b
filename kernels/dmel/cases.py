"""Shapes of dmel, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch

HOP, WINDOW, BANDS, MELS, BINS, TAPS = 800, 1600, 801, 80, 16, 64


@dataclass(frozen=True)
class DMelCase:
    """B lines of F hops each, the first of which is hop `position` of its stream."""

    B: int
    F: int
    position: int
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"B={self.B},F={self.F},position={self.position}"

    @property
    def flops(self) -> int:
        transform = int(2.5 * WINDOW * math.log2(WINDOW))
        row = WINDOW + transform + 4 * BANDS + 2 * MELS * TAPS + 3 * MELS * BINS
        return self.B * self.F * row

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Audio, state and constants (of a filter the bands where it is not zero) at `itemsize`;
        bins are int64.
        """
        state = self.B * HOP * (2 if self.position else 1)
        constants = (WINDOW + MELS * TAPS + BINS) * (self.B > 0)
        values = self.B * self.F * HOP + state + constants
        return values * itemsize + 8 * self.B * self.F * MELS


CASES = (
    DMelCase(0, 1, 0, "no lines"),
    DMelCase(1, 2, 0, "the first tick of a session of 100 ms"),
    DMelCase(3, 2, 40, "a tick of three sessions under way"),
    DMelCase(5, 1, 7, "ticks of one hop"),
    DMelCase(1, 7, 0, "a prime number of hops at once"),
)

DTYPES = ("fp32",)
BENCH_CASES = (
    DMelCase(1, 2, 9000, "a tick of one session"),
    DMelCase(16, 2, 9000, "of 16 sessions"),
    DMelCase(64, 2, 9000, "of 64 sessions: a hop for nearly every multiprocessor"),
    DMelCase(64, 4, 9000, "of 64 sessions, 200 ms"),
    DMelCase(1, 1200, 0, "a minute at once"),
)


def make_inputs(
    case: DMelCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Noise of the case's shape, its level falling over the hops; fp32 whatever `dtype`."""
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.dmel.weights import dmel_weights
    from microturn.kernels.rows import RowBatch

    del dtype
    g = torch.Generator().manual_seed(seed)
    hops = case.B * case.F
    level = torch.logspace(0, -4, hops)[:, None]
    audio = 0.3 * level * torch.randn(hops, HOP, generator=g)
    slots = list(range(case.B, 0, -1))
    data = torch.randn(2, case.B + 2, HOP, generator=g) * 0.1
    state = Twice(data.to(device), torch.zeros(case.B + 2, dtype=torch.int64, device=device))
    rows = RowBatch.build(slots, [case.F] * case.B, [case.position] * case.B, device=device)
    return OpInputs(audio.to(device), dmel_weights(device), state, rows)
