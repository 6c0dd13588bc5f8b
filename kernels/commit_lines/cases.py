"""Shapes of commit_lines, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CommitLinesCase:
    """B lines, E of which may speak, F positions of Q codes and N samples each. Lines of `broken`
    hold a number that is not finite, one kind after the other; every third does not emit.
    """

    B: int
    E: int
    F: int
    Q: int
    N: int
    broken: tuple[int, ...]
    reason: str
    bar: Bar | None = None

    @property
    def id(self) -> str:
        return f"B={self.B},E={self.E},F={self.F},Q={self.Q},N={self.N},broken={len(self.broken)}"

    @property
    def flops(self) -> int:
        return self.E * (3 * self.N + 2 * self.F)

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Audio in and out; ids and cursors are integers of 8 bytes."""
        samples = (self.E + self.B) * self.N + self.E * self.F
        return itemsize * samples + 8 * (5 * self.B + self.E * 2 * (1 + self.Q)) + self.E * self.F


CASES = (
    CommitLinesCase(1, 1, 2, 4, 2400, (), "one session of a tick of 100 ms"),
    CommitLinesCase(7, 5, 2, 8, 1100, (0, 2, 3), "text, codes or audio that is not finite"),
    CommitLinesCase(3, 3, 1, 2, 7, (0,), "ticks of one output position"),
    CommitLinesCase(2, 0, 2, 3, 24, (), "nobody speaks"),
)

BENCH_CASES = (
    CommitLinesCase(64, 64, 2, 8, 2400, (), "64 sessions of interaction-small"),
    CommitLinesCase(1, 1, 2, 8, 2400, (), "one session"),
)


def make_inputs(
    case: CommitLinesCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """The last line has no slot where there are more lines than speak; fp32 whatever `dtype`."""
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.commit_lines.reference import Said
    from microturn.kernels.draw import Draw
    from microturn.kernels.open_lines.reference import LineState

    draw = Draw(seed, None, device)
    slots = case.B + 2
    slot_ids = torch.arange(slots - 1, 1, -1, dtype=torch.int32)
    if case.E < case.B:
        slot_ids[-1] = -1
    peaks = 3 + draw.uniform(case.F, case.E)
    finite = torch.ones(case.F, case.E, dtype=torch.bool, device=device)
    audio = draw.normal(case.E, case.N)
    for kind, line in enumerate(case.broken):
        if kind % 3 == 0:
            audio[line, -1] = float("nan")
        elif kind % 3 == 1:
            peaks[-1, line] = float("inf")
        else:
            finite[0, line] = False
    x = Said(
        slot_ids.to(device),
        torch.tensor([b < case.E and b % 3 != 1 for b in range(case.B)]).to(device),
        draw.integers(1, 1 << 33, (2, case.B)),
        peaks,
        finite,
        draw.integers(0, 2000, (case.F, case.E)),
        draw.integers(0, 2000, (case.F, case.E, case.Q)),
        audio,
    )
    state = LineState(
        draw.integers(0, 1 << 33, (slots,)),
        draw.integers(0, 1 << 33, (slots,)),
        Twice(draw.integers(0, 2000, (2, slots, 1 + case.Q)), draw.integers(0, 2, (slots,))),
    )
    return OpInputs(x, None, state, None)
