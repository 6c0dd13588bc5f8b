"""What `interaction-tiny` can say, and the voice it says it with.

Voice, speed and words were chosen by what the recogniser of the benchmark makes of the originals
(LOG.md): of the words that the five tasks need, those it mistakes for others in every voice were
left out.
"""

from __future__ import annotations

from functools import cache
from math import ceil

import numpy as np
import soxr
from numpy.random import Generator

from microturn.bench.interactivity.acoustics import at_level
from microturn.bench.interactivity.speech import (
    SAMPLE_RATE,
    Audio,
    Utterance,
    Voice,
    Word,
    say,
)
from microturn.bench.interactivity.vocabulary import SPOKEN

VOICE = Voice("en-us", rate=150)
WORDS = (
    *SPOKEN,
    *("pause", "resume", "again", "ready", "yes", "no", "okay", "hello", "goodbye", "sorry"),
    *("thanks", "remind", "left", "right", "circle", "water", "window", "table", "house"),
    *("morning", "seconds"),
)
"""Those that the tasks expect, and some for conversation."""
LEVEL_DB = -20.0
CODEC_RATE = 24_000
HEARD_FRAME = SAMPLE_RATE // 20
"""Samples of a codec frame at the rate that espeak-ng and the recogniser have here."""

PITCHES, HELD_OUT_PITCHES = (44, 47, 50, 53, 56), (45, 49, 51, 55)
RATES = (145, 155)
"""Of renditions, about the voice's own."""


@cache
def spoken(word: str, voice: Voice = VOICE) -> Audio:
    """`word` at SAMPLE_RATE and LEVEL_DB."""
    audio = at_level(say(word, voice).audio, LEVEL_DB)
    return np.clip(audio, -1, 1)


def rendition(rng: Generator, held_out: bool) -> Voice:
    """The voice a little higher or lower, quicker or slower: one that training hears, or one that
    it never does.
    """
    pitches = HELD_OUT_PITCHES if held_out else PITCHES
    return Voice(VOICE.name, rate=int(rng.choice(RATES)), pitch=int(rng.choice(pitches)))


def utterance(
    rng: Generator,
    count: int,
    *,
    canonical: float,
    held_out: bool = False,
    gaps: tuple[float, float] = (0.3, 0.6),
) -> Utterance:
    """`count` random words, each with some seconds of silence after it: whole frames at CODEC_RATE.

    canonical: share of the words that are as the model says them, in VOICE and from the start of a
    frame on; the others are some `rendition` of it, begun anywhere in a frame.
    """
    parts: list[Audio] = []
    said: list[Word] = []
    at = 0
    for word in map(str, rng.choice(WORDS, count)):
        if rng.random() < canonical:
            sound, lead = spoken(word), 0
        else:
            sound, lead = spoken(word, rendition(rng, held_out)), int(rng.integers(HEARD_FRAME))
        end = lead + len(sound)
        piece = np.zeros(
            HEARD_FRAME * ceil((end + rng.uniform(*gaps) * SAMPLE_RATE) / HEARD_FRAME), np.float32
        )
        piece[lead:end] = sound
        parts.append(piece)
        said.append(Word(word, (at + lead) / SAMPLE_RATE, (at + end) / SAMPLE_RATE))
        at += len(piece)
    return Utterance(at_codec_rate(np.concatenate(parts)), tuple(said))


def at_codec_rate(audio: Audio) -> Audio:
    """From SAMPLE_RATE to CODEC_RATE."""
    resampled: Audio = soxr.resample(audio, SAMPLE_RATE, CODEC_RATE).astype(np.float32)
    return resampled
