"""An independent listener: pocketsphinx with a grammar of a few dozen phrases.

It hears no dictation. A recording is cut where it is silent, and each piece is matched with the
phrases it was given: that is quick (a tenth of real time), and all that a scorer needs. Extra
`interactivity` brings it (pocketsphinx, BSD 2-clause, its models included).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from microturn.bench.interactivity.acoustics import at_level
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Word

STEP = SAMPLE_RATE // 100
"""Samples of a frame of the level."""
QUIET_DB = -35.0
"""Frames this far below the loudest are silence."""
PAUSE = 0.15
"""Shorter silence is a stop consonant inside a word. Seconds."""
SHORTEST = 0.08
"""Sounds shorter than this are no word. Seconds."""
LEVEL_DB, FLOOR = -20.0, 2e-3
"""What the recogniser is given: speech at this level, over noise of this amplitude. Its models know
no digital silence: without the noise it hears a third of the words.
"""
MARGIN = 0.25
"""Of that noise before and after. Seconds."""


class Recogniser:
    """phrases: ASCII words of its dictionary, "breathe in" or "four", which are all it knows.

    Raises ValueError on no phrases and on a word it cannot pronounce, ModuleNotFoundError without
    the extra.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        import pocketsphinx

        if not phrases:
            raise ValueError("a recogniser wants at least one phrase, got none")
        self._decoder = pocketsphinx.Decoder(
            hmm=pocketsphinx.get_model_path("en-us/en-us"),
            dict=pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"),
            lm=None,
            cmn="batch",  # nothing is remembered from one piece to the next
            loglevel="FATAL",
        )
        words = sorted({word for phrase in phrases for word in phrase.split()})
        unknown = [word for word in words if self._decoder.lookup_word(word) is None]
        if unknown:
            raise ValueError(f"the recogniser's dictionary lacks {', '.join(map(repr, unknown))}")
        choice = " | ".join(dict.fromkeys(phrases))
        self._decoder.add_jsgf_string(
            "phrases", f"#JSGF V1.0; grammar phrases; public <phrase> = {choice} ;"
        )
        self._decoder.activate_search("phrases")

    def hear(self, audio: Audio) -> tuple[Word, ...]:
        """audio [n] fp32 at SAMPLE_RATE -> each sound between two pauses and its likeliest phrase,
        "" where none fits; seconds from the start of the recording.
        """
        return tuple(
            Word(self._phrase(audio[start:end]), start / SAMPLE_RATE, end / SAMPLE_RATE)
            for start, end in sounds(audio)
        )

    def _phrase(self, sound: Audio) -> str:
        margin = round(MARGIN * SAMPLE_RATE)
        padded = np.pad(at_level(sound, LEVEL_DB), margin)
        noisy = padded + FLOOR * np.random.default_rng(0).standard_normal(len(padded))
        samples = (np.clip(noisy, -1, 1) * 32767).astype("<i2")
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        segments = self._decoder.seg() or ()
        # Silence and noise are <sil>, [NOISE]; another pronunciation of a word is word(2).
        return " ".join(s.word.split("(")[0] for s in segments if s.word[0] not in "<[+(")


def sounds(audio: Audio) -> list[tuple[int, int]]:
    """[n] -> first sample and end of each stretch of sound, pauses between them."""
    frames = len(audio) // STEP
    if not frames:
        return []
    power = np.square(audio[: frames * STEP], dtype=np.float64).reshape(frames, STEP).mean(1)
    loud = np.flatnonzero((power > power.max() * 10 ** (QUIET_DB / 10)) & (power > 1e-9))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > PAUSE * SAMPLE_RATE / STEP)
    first = loud[np.concatenate(([0], breaks + 1))] * STEP
    end = (loud[np.concatenate((breaks, [len(loud) - 1]))] + 1) * STEP
    return [
        (int(a), int(b)) for a, b in zip(first, end, strict=True) if b - a >= SHORTEST * SAMPLE_RATE
    ]
