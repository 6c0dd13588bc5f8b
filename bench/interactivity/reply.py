"""What a system answered to a scene, as scorers see it."""

from __future__ import annotations

from dataclasses import dataclass

from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Word


@dataclass(frozen=True, eq=False)
class Reply:
    """words  what was said, by the time it began: of the text stream, or as a recogniser heard it
    audio    [n] fp32 at SAMPLE_RATE from the scene's beginning; None where only text was given
    """

    words: tuple[Word, ...]
    audio: Audio | None = None

    def between(self, start: float, end: float) -> tuple[Word, ...]:
        """The words that begin in [start, end)."""
        return tuple(word for word in self.words if start <= word.start < end)

    def last_sound(self, start: float, end: float) -> float | None:
        """When the last sound of [start, end) ends, or begins where there is no audio: words alone
        do not say how long they sound. None: there is none.
        """
        if self.audio is None:
            words = self.between(start, end)
            return words[-1].start if words else None
        begin = round(start * SAMPLE_RATE)
        piece = self.audio[begin : round(end * SAMPLE_RATE)]
        loud = abs(piece) > AUDIBLE
        return (begin + int(loud.nonzero()[0][-1]) + 1) / SAMPLE_RATE if loud.any() else None


AUDIBLE = 0.01
"""Of full scale: speech is well above, what a codec makes of silence well below."""
