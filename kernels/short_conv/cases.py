"""Shapes of short_conv, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import OpInputs

if TYPE_CHECKING:
    import torch


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

    def bytes(self, itemsize: int) -> int:
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
)


def make_inputs(
    case: ShortConvCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Gaussian inputs; line b runs in slot b of rings that hold NaN wherever no input was."""
    import torch

    from microturn.kernels.arena import Ring
    from microturn.kernels.rows import RowBatch
    from microturn.kernels.short_conv.reference import short_conv_spec

    dtype = dtype or torch.float32
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(case.T, case.C, generator=g).to(device, dtype)
    weights = (torch.randn(case.C, case.K, generator=g) / case.K**0.5).to(device, dtype)
    spec = short_conv_spec("short_conv", case.C, case.K, case.max_rows, "rows")
    slots = range(len(case.counts))
    data = torch.full((len(case.counts) + 1, spec.capacity, case.C), float("nan"))
    for slot, start in zip(slots, case.starts, strict=True):
        for position in range(max(0, start - case.K + 1), start):
            data[slot, position % spec.capacity] = torch.randn(case.C, generator=g)
    rows = RowBatch.build(slots, case.counts, case.starts, device=device)
    return OpInputs(x, weights, Ring(data.to(device, dtype)), rows)
