"""Speech from espeak-ng, through its library: any voice, with the time of every word.

The library keeps its voice, its callback and the phase of its noises from one text to the next, so
it is opened anew for each (25 ms); voices tremble by random numbers, of its own, seeded by the time
of day, and of the C library: both are seeded here. What a text sounds like depends on nothing said
before, nor on when. Extra
`interactivity` brings it (espeakng-loader; espeak-ng is GPL-3.0-or-later: called, never shipped).
"""

from __future__ import annotations

import _ctypes
import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Of every recording in this package: what the model hears."""

PUNCTUATION = ".,?!;:"

Audio = NDArray[np.float32]


class Word(NamedTuple):
    """One spoken word, seconds from the start of its recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Voice:
    """name as espeak-ng knows it ("en-us+f3"), rate in words a minute, pitch and range 0 to 99."""

    name: str
    rate: int = 170
    pitch: int = 50
    range: int = 50


@dataclass(frozen=True)
class Utterance:
    """audio [n] fp32 at SAMPLE_RATE within [-1, 1], from the first sound to the last; its words."""

    audio: Audio
    words: tuple[Word, ...]

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("text", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_LAST, _WORD = 0, 1
_RETRIEVAL, _UTF8 = 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_lock = threading.Lock()


class _Library:
    """libespeak-ng, opened for one text."""

    def __init__(self) -> None:
        import espeakng_loader

        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate = int(self._lib.espeak_Initialize(_RETRIEVAL, 0, data, 0))
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng did not start (code {self.rate}); data folder {data!r}")
        self._samples: list[NDArray[np.int16]] = []
        self._starts: list[tuple[int, int]] = []
        self._callback = _Callback(self._hear)  # kept: the library holds only its address
        self._lib.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _LAST:
            if events[i].type == _WORD:
                event = events[i]
                self._starts.append((event.text_position - 1, event.sample))
            i += 1
        return 0

    def say(self, text: str, voice: Voice) -> tuple[NDArray[np.int16], list[tuple[int, int]]]:
        """Samples at `rate`, and (first character, first sample) of each word."""
        if self._lib.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        raw = text.encode()
        code = self._lib.espeak_Synth(raw, len(raw) + 1, 0, 1, 0, _UTF8, None, None)
        self._lib.espeak_Synchronize()
        if code or not self._samples:
            raise RuntimeError(f"espeak-ng made no sound of {text!r} (code {code})")
        return np.concatenate(self._samples), list(self._starts)

    def close(self) -> None:
        """Unloads the library, and with it all it remembers."""
        self._lib.espeak_Terminate()
        _ctypes.dlclose(self._lib._handle)


def say(text: str, voice: Voice) -> Utterance:
    """`text` (ASCII words) spoken by `voice`, silence at both ends cut off.

    Raises ValueError on a voice the library does not have and on text without words,
    ModuleNotFoundError without the extra.
    """
    if not text.isascii() or not any(c.isalpha() for c in text):
        raise ValueError(f"speech wants ASCII words, got {text!r}")
    with _lock, closing(_Library()) as library:
        samples, starts = library.say(text, voice)
        rate = library.rate
    loud = np.flatnonzero(np.abs(samples) > 64)  # 0.2 % of full scale
    first, last = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(samples))
    audio = soxr.resample(samples[first:last].astype(np.float32) / 32768, rate, SAMPLE_RATE)
    words = tuple(
        Word(word, max(0.0, start - first) / rate, max(0.0, min(end, last) - first) / rate)
        for word, start, end in _spans(text, starts, last)
    )
    return Utterance(audio.astype(np.float32), words)


def _spans(
    text: str, starts: Sequence[tuple[int, int]], last: int
) -> Iterator[tuple[str, float, float]]:
    """Each word of text, its first sample and the one after its last. Words that the library says
    as one ("in the") share its time by their letters.
    """
    after = [*starts[1:], (len(text), last)]
    for (at, sample), (next_at, next_sample) in zip(starts, after, strict=True):
        words = [word.strip(PUNCTUATION) for word in text[at:next_at].lower().split()]
        letters = sum(map(len, words)) or 1
        begin = float(sample)
        for word in words:
            end = begin + (next_sample - sample) * len(word) / letters
            yield word, begin, end
            begin = end


def say_words(words: Sequence[str], voice: Voice, gaps: Sequence[float]) -> Utterance:
    """Words one by one with `gaps[i]` seconds of silence after word i: no word runs into the next.

    Raises ValueError when there are not as many gaps as words.
    """
    if len(words) != len(gaps):
        raise ValueError(f"{len(words)} words want as many gaps, got {len(gaps)}")
    parts: list[Audio] = []
    timed: list[Word] = []
    at = 0
    for word, gap in zip(words, gaps, strict=True):
        spoken = say(word, voice).audio
        timed.append(Word(word, at / SAMPLE_RATE, (at + len(spoken)) / SAMPLE_RATE))
        silence = np.zeros(round(gap * SAMPLE_RATE), np.float32)
        parts += [spoken, silence]
        at += len(spoken) + len(silence)
    return Utterance(np.concatenate(parts) if parts else np.zeros(0, np.float32), tuple(timed))
