"""The micro-turn sequence of a tick: [feedback] [context]* [patches]* [audio] x n, then the
outputs one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TickRows(NamedTuple):
    """Rows one line brings to the append pass, by kind, in their order."""

    n_feedback: int
    n_context: int
    n_patches: int
    n_audio: int

    @property
    def total(self) -> int:
        return sum(self)


def pack_order(lines: Sequence[TickRows]) -> list[int]:
    """Packed row -> index into the kinds laid end to end (all feedback, all context, all patches,
    all audio).

    Worked example: two lines, (1, 0, 0, 2) and (1, 1, 1, 2); the kinds lie as f0 f1 | c0 | p0 |
    a0 a1 a2 a3, the packed rows are f0 a0 a1 f1 c0 p0 a2 a3: order [0, 4, 5, 1, 2, 3, 6, 7].
    """
    at = [0]
    for counts in zip(*lines, strict=True):
        at.append(at[-1] + sum(counts))
    order: list[int] = []
    for line in lines:
        for kind, count in enumerate(line):
            order += range(at[kind], at[kind] + count)
            at[kind] += count
    return order
