"""What stands between a mouth and a microphone: distance, room, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio


@dataclass(frozen=True)
class Room:
    """decay  seconds until an echo has fallen by 60 dB; 0: no echo
    wet       level of the echoes against the direct sound, dB
    noise_db  level of the noise below the speech; None: no noise
    level_db  of the speech, root mean square against full scale
    """

    decay: float = 0.0
    wet: float = -6.0
    noise_db: float | None = None
    level_db: float = -26.0


def rms(audio: Audio) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0


def at_level(audio: Audio, level_db: float) -> Audio:
    """Scaled so that what is not silence has `level_db` rms against full scale."""
    loud = audio[np.abs(audio) > 1e-3]
    if not len(loud):
        return audio
    return (audio * (10 ** (level_db / 20) / rms(loud))).astype(np.float32)


def reverberate(audio: Audio, decay: float, wet: float, rng: Generator) -> Audio:
    """Convolved with exponentially falling noise after the direct sound; length unchanged."""
    if decay <= 0 or not len(audio):
        return audio
    n = round(decay * SAMPLE_RATE)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[: round(0.002 * SAMPLE_RATE)] = 0
    tail *= 10 ** (wet / 20) / np.sqrt(np.square(tail).sum())
    size = 1 << (len(audio) + n - 1).bit_length()
    echo = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)
    return (audio + echo[: len(audio)]).astype(np.float32)


def noise(samples: int, rng: Generator) -> Audio:
    """Noise whose power falls by 3 dB an octave (as rooms hum), rms 1."""
    if not samples:
        return np.zeros(0, np.float32)
    size = 1 << (samples - 1).bit_length()  # an awkward length would cost ten times as much
    spectrum = np.fft.rfft(rng.standard_normal(size))
    shape = 1 / np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    coloured = np.fft.irfft(spectrum * shape, size)[:samples]
    return (coloured / (rms(coloured.astype(np.float32)) or 1.0)).astype(np.float32)


def in_room(audio: Audio, room: Room, rng: Generator) -> Audio:
    """A recording of `audio` made in `room`, clipped to [-1, 1]."""
    heard = at_level(reverberate(audio, room.decay, room.wet, rng), room.level_db)
    if room.noise_db is not None:
        heard = heard + noise(len(heard), rng) * 10 ** ((room.level_db - room.noise_db) / 20)
    return np.clip(heard, -1, 1).astype(np.float32)


def mix(samples: int, *parts: tuple[float, Audio]) -> Audio:
    """[samples]: each (start in seconds, audio) added at its time; what stands outside is cut."""
    total = np.zeros(samples, np.float32)
    for start, audio in parts:
        at = round(start * SAMPLE_RATE)
        piece = audio[max(0, -at) : max(0, samples - at)]
        total[max(0, at) : max(0, at) + len(piece)] += piece
    return total
