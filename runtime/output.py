"""What a session gives each tick. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.delegation import DelegationEvent


class TextEvent(NamedTuple):
    """One text token: when it was said in the session's media time, and its piece of the text."""

    ms: float
    token_id: int
    piece: str


@dataclass(frozen=True, eq=False)
class Output:
    """One tick of one session.

    tick            index on the clock's grid; that of the output before where one was caught up
    start_ms, end_ms  media time: what was heard in it is what was pushed for it, and audio begins
                    at start_ms too
    audio           [n] fp32 mono in [-1, 1] at sample_rate
    text            the pieces of `words`, joined; texts of consecutive outputs join to the
                    transcript
    events          every text token but `<listen>`
    codes           [F, Q] int64, the codec frames of audio
    slack_ms        deadline minus the moment the tick's outputs were all made; negative is late
    step_ms         the model's part of the tick
    pending_rows    context and patch rows still waiting after this tick
    inserted_silence_ms  how much of what it heard was missing and became silence
    dropped_ms      input dropped right before what was heard here, since the last output that was
                    read (queue full, warming, paused, late ticks)
    dropped_outputs outputs before this one that were not read in time
    delegation      the model asked its background model to take over
    untrained       the weights are random: text and audio mean nothing
    delegations     what was delegated in this tick, and what became of earlier ones until now
    """

    session_id: str
    tick: int
    start_ms: int
    end_ms: int
    audio: NDArray[np.float32]
    sample_rate: int
    text: str
    events: tuple[TextEvent, ...]
    codes: NDArray[np.int64]
    slack_ms: float
    step_ms: float
    pending_rows: int
    inserted_silence_ms: float
    dropped_ms: float
    dropped_outputs: int
    delegation: bool
    untrained: bool
    delegations: tuple[DelegationEvent, ...] = ()

    @property
    def late(self) -> bool:
        return self.slack_ms < 0

    @property
    def words(self) -> tuple[TextEvent, ...]:
        """The events that have text."""
        return tuple(event for event in self.events if event.piece)
