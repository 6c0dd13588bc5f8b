"""The micro-turn sequence of a tick: [feedback] [context]* [audio] x n, then the outputs one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class TickRows(NamedTuple):
    """Rows one line brings to the append pass, by kind, in their order."""

    n_feedback: int
    n_context: int
    n_audio: int

    @property
    def total(self) -> int:
        return sum(self)


def pack_order(lines: Sequence[TickRows]) -> list[int]:
    """Packed row -> index into the kinds laid end to end (all feedback, all context, all audio).

    Worked example: two lines, (1, 0, 2) and (1, 1, 2); the kinds lie as f0 f1 | c0 | a0 a1 a2 a3,
    the packed rows are f0 a0 a1 f1 c0 a2 a3: order [0, 3, 4, 1, 2, 5, 6].
    """
    feedback = 0
    context = sum(line.n_feedback for line in lines)
    audio = context + sum(line.n_context for line in lines)
    order: list[int] = []
    for line in lines:
        order += range(feedback, feedback + line.n_feedback)
        order += range(context, context + line.n_context)
        order += range(audio, audio + line.n_audio)
        feedback += line.n_feedback
        context += line.n_context
        audio += line.n_audio
    return order
