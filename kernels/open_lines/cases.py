"""Shapes of open_lines, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microturn.kernels.registry import Bar, OpInputs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OpenLinesCase:
    """Lines of `counts` rows, the first E of which may speak, in buffers of T rows; a count of 0
    pads. Every third line has a new tenant, every third has read context only.
    """

    counts: tuple[int, ...]
    T: int
    E: int
    F: int
    Q: int
    reason: str
    bar: Bar | None = None

    @property
    def B(self) -> int:
        return len(self.counts)

    @property
    def id(self) -> str:
        return f"B={self.B},T={self.T},E={self.E},F={self.F},Q={self.Q}"

    @property
    def flops(self) -> int:
        return self.T + self.E * self.F

    def bytes(self, itemsize: int, streamed: int | None = None) -> int:
        """Nearly all are integers of 8 bytes: two values of fp32."""
        made = self.T + self.E * 3 * self.F + 2 * self.B * (1 + self.Q) + 2 * self.B
        return 2 * itemsize * (made + 3 * self.B) + 10 * self.B


CASES = (
    OpenLinesCase((3,), 4, 1, 2, 4, "one session of a tick of 100 ms, a row of padding"),
    OpenLinesCase((4, 67, 3, 1, 0), 96, 3, 2, 8, "lines that speak, read a lot, or pad"),
    OpenLinesCase((5, 0, 2), 7, 3, 1, 2, "ticks of one output position, a line of nobody between"),
    OpenLinesCase((9, 2), 11, 0, 4, 3, "nobody speaks"),
)

BENCH_CASES = (
    OpenLinesCase((3,) * 64, 256, 64, 2, 8, "64 sessions of interaction-small"),
    OpenLinesCase((3,), 4, 1, 2, 8, "one session"),
)


def make_inputs(
    case: OpenLinesCase,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpInputs:
    """Slots in falling order, cursors and ids at random; integers whatever `dtype`."""
    import torch

    from microturn.kernels.arena import Twice
    from microturn.kernels.draw import Draw
    from microturn.kernels.open_lines.reference import LineState, Opening

    draw = Draw(seed, dtype, device)
    slots = case.B + 2
    offsets = [0]
    for count in case.counts:
        offsets.append(offsets[-1] + count)

    def made(values: list[int] | list[bool], kind: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=kind).to(device)

    x = Opening(
        made([slots - 1 - b if n else -1 for b, n in enumerate(case.counts)], torch.int32),
        made(offsets, torch.int32),
        made([b < case.E and n > 0 and b % 3 != 1 for b, n in enumerate(case.counts)], torch.bool),
        made([b % 3 == 2 and n > 0 for b, n in enumerate(case.counts)], torch.bool),
        num_rows=case.T,
        speaking=case.E,
        frames=case.F,
    )
    frames = draw.integers(0, 2, (slots,)) * draw.integers(1, 1 << 33, (slots,))
    state = LineState(
        frames + draw.integers(0, 100, (slots,)),
        frames,
        Twice(draw.integers(0, 2000, (2, slots, 1 + case.Q)), draw.integers(0, 2, (slots,))),
    )
    return OpInputs(x, draw.integers(0, 2000, (1 + case.Q,)), state, None)
