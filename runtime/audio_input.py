"""From what a caller has to what the model hears: mono float32 at one rate. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.errors import AudioError

Samples = NDArray[np.float32]

QUALITY = "HQ"
"""soxr's 20-bit quality: it lags by about 40 ms of 48 kHz input, most of it its filter's length."""

MAX_PEAK = 2.0
MAX_CHANNELS = 32
RATES = (1_000, 768_000)


def check_rate(rate: float) -> float:
    """Raises AudioError."""
    if isinstance(rate, bool) or not isinstance(rate, Real) or not math.isfinite(rate):
        raise AudioError(f"rate must be a number of samples a second, got {rate!r}")
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"rate must be in [{RATES[0]}, {RATES[1]}] Hz, got {rate:g}")
    return float(rate)


def to_mono(pcm: Any) -> Samples:
    """int16, or float in [-1, 1]; [n] or [n, channels], which are averaged -> [n] float32.

    Always a copy: the caller may reuse its buffer. Raises AudioError.
    """
    array = np.asarray(pcm)
    if array.dtype != np.int16 and array.dtype.kind != "f":
        raise AudioError(f"audio must be int16 or floating point, got {array.dtype}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise AudioError(
            f"audio must be [n] or [n, channels] with at most {MAX_CHANNELS} channels, "
            f"got {list(array.shape)}; transpose [channels, n]"
        )
    if array.dtype == np.int16:
        samples = array.astype(np.float32) / np.float32(32768)
    else:
        bad = ~np.isfinite(array)
        if bad.any():
            raise AudioError(
                f"audio must be finite, got {int(bad.sum())} NaN or infinite samples of "
                f"{array.size}; none were taken"
            )
        peak = float(np.abs(array).max(initial=0))
        if peak > MAX_PEAK:
            raise AudioError(
                f"floating point audio must be in [-1, 1], got a peak of {peak:g}; "
                f"pass 16-bit samples as int16"
            )
        samples = array.astype(np.float32)
    mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
    clipped: Samples = np.clip(mono, -1.0, 1.0)
    return clipped


OVERLAP = 4096
"""Input samples, or a quarter of a second where that is more: longer than what a filter holds back
and than its memory, so that one which starts there goes on as the one before.
"""


@dataclass(frozen=True)
class ResamplerState:
    """Enough to go on with a stream elsewhere.

    rate    of the input, None between streams
    recent  the input [n] of the filter at work, empty when the rate needs no resampling
    given   samples of the output of `recent` that were given already
    """

    rate: float | None
    recent: Samples
    given: int


class Resampler:
    """A stream of samples of any rate to one rate. A change of rate starts a new stream.

    The bits that come out do not depend on how the stream was cut, nor on where it was taken out
    and put into another resampler: a filter's memory cannot be saved, so every second or so, at a
    fixed sample of the stream, a new filter takes over that has only heard the newest input.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._from: float | None = None
        self._stream: Any = None
        self._recent = np.empty(0, np.float32)
        self._life = self._overlap = 0
        self._given = 0
        self._skip = 0

    def push(self, samples: Samples, rate: float) -> Samples:
        """All output that is ready: the end of the input may still be inside the filter."""
        before = np.empty(0, np.float32)
        if rate != self._from:
            before = self.flush()
            self._start(rate)
        if self._stream is None:
            return np.concatenate((before, samples))
        made = [before]
        while len(samples):
            room = self._life - len(self._recent)
            made.append(self._hear(samples[:room]))
            samples = samples[room:]
            if len(self._recent) == self._life:
                made.append(self._renew())
        return np.concatenate(made)

    def flush(self) -> Samples:
        """What is still inside; the stream is over."""
        stream, self._stream, self._from = self._stream, None, None
        if stream is None:
            return np.empty(0, np.float32)
        rest = self._give(stream.resample_chunk(np.empty(0, np.float32), last=True))
        self._recent, self._given, self._skip = rest[:0], 0, 0
        return rest

    def save(self) -> ResamplerState:
        """For `resume`."""
        return ResamplerState(self._from, self._recent, self._given)

    def resume(self, state: ResamplerState) -> None:
        """Goes on where another stood: what comes next has the bits it would have had there."""
        self.flush()
        if state.rate is None:
            return
        self._start(state.rate)
        if self._stream is not None:
            self._skip = self._given = state.given
            self._hear(state.recent)

    def _start(self, rate: float) -> None:
        self._from = rate
        if rate == self._rate:
            return
        # Input and output samples fall together every `step` of the input: filters change there.
        step = Fraction(rate).limit_denominator(4) / self._rate
        self._overlap = _multiple(step.numerator, max(OVERLAP, rate / 4))
        self._life = self._overlap + _multiple(step.numerator, max(3 * OVERLAP, rate * 3 / 4))
        self._stream = self._filter()

    def _filter(self) -> Any:
        import soxr

        return soxr.ResampleStream(self._from, self._rate, 1, dtype="float32", quality=QUALITY)

    def _renew(self) -> Samples:
        """A new filter, and what it can give that the one before could not yet."""
        assert self._from is not None
        recent = self._recent[self._life - self._overlap :]
        over = round((self._life - self._overlap) * self._rate / self._from)
        self._stream, self._recent = self._filter(), recent[:0]
        self._given -= over
        self._skip = self._given
        return self._hear(recent)

    def _hear(self, samples: Samples) -> Samples:
        self._recent = np.concatenate((self._recent, samples))
        return self._give(self._stream.resample_chunk(samples))

    def _give(self, made: Samples) -> Samples:
        skipped = min(self._skip, len(made))
        self._skip -= skipped
        given: Samples = np.clip(made[skipped:], -1.0, 1.0)
        self._given += len(given)
        return given


def _multiple(step: int, least: float) -> int:
    """The first multiple of `step` that is not below `least`."""
    return math.ceil(least / step) * step
