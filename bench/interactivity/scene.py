"""A scene: what a listener hears and sees, what it is expected to say, and the truth behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from microturn.bench.interactivity.acoustics import Room, at_level, in_room, mix
from microturn.bench.interactivity.figures import Figure, Performance, draw
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Utterance, Word

LATEST = 0.3
"""Seconds by which an utterance may miss its time and still be on time (spec/interaction.md 4)."""

QUIET_DB = 30.0
"""Noise below the speech in the condition "clean": nobody's room is silent."""


@dataclass(frozen=True)
class Expected:
    """`word` should begin within `tolerance` seconds of `at`."""

    word: str
    at: float
    tolerance: float = LATEST

    def on_time(self, said: float) -> bool:
        return abs(said - self.at) <= self.tolerance + 1e-9


@dataclass(frozen=True)
class Shot:
    """From `start` on: a figure, or an empty room; at most one performance."""

    start: float
    figure: Figure
    performance: Performance | None = None
    present: bool = True


@dataclass(frozen=True)
class Film:
    """Shots in order. Pictures are drawn when asked for, of one patch unless `size` says more."""

    shots: tuple[Shot, ...]
    fps: float = 10.0
    size: tuple[int, int] = (39, 40)

    def picture(self, time: float) -> NDArray[np.uint8]:
        """[height, width, 3] at `time` seconds."""
        shot = next((s for s in reversed(self.shots) if s.start <= time), self.shots[0])
        return draw(shot.figure, shot.performance, time, self.size, present=shot.present)

    def pictures(self, seconds: float) -> list[tuple[float, NDArray[np.uint8]]]:
        """(time, picture) at `fps` over the first `seconds`."""
        count = int(seconds * self.fps)
        return [(i / self.fps, self.picture(i / self.fps)) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Reel:
    """Pictures that were taken already, at `fps`."""

    taken: Sequence[NDArray[np.uint8]]
    fps: float = 10.0

    def picture(self, time: float) -> NDArray[np.uint8]:
        """The one at `time` seconds; the last after it."""
        return self.taken[min(round(time * self.fps), len(self.taken) - 1)]


@dataclass(frozen=True, eq=False)
class Scene:
    """audio [n] fp32 at SAMPLE_RATE, film None where there is nothing to see.

    expected  what an ideal listener says, by time; scorers may use `facts` instead
    hush      moments from which it is silent, in the middle of a word too, until the next word
    heard     every word spoken to it or around it
    facts     the truth that a task is scored by, plain values
    """

    name: str
    task: str
    split: str
    audio: Audio
    film: Film | Reel | None
    expected: tuple[Expected, ...]
    heard: tuple[Word, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    hush: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLE_RATE


class Take:
    """Collects a scene's speech: what is said is placed on a line of time."""

    def __init__(self) -> None:
        self._parts: list[tuple[float, Utterance, float]] = []

    def say(self, spoken: Utterance, at: float, level_db: float = 0.0) -> float:
        """Starts at `at` seconds, `level_db` against the speaker in front; gives its end."""
        self._parts.append((at, spoken, level_db))
        return at + spoken.seconds

    @property
    def heard(self) -> tuple[Word, ...]:
        words = [
            Word(word.text, at + word.start, at + word.end)
            for at, spoken, _ in self._parts
            for word in spoken.words
        ]
        return tuple(sorted(words, key=lambda word: word.start))

    def record(self, seconds: float, room: Room, rng: Generator) -> Audio:
        """[n] fp32: everything said, as the microphone in `room` hears it."""
        samples = round(seconds * SAMPLE_RATE)
        parts = [
            (at, (at_level(spoken.audio, -26.0) * 10 ** (level / 20)).astype(np.float32))
            for at, spoken, level in self._parts
        ]
        return in_room(mix(samples, *parts), room, rng)


CONDITIONS: tuple[str, ...] = ("clean", "noise", "room")
"""Noise at 10 dB; a room of half a second. The voice that leaks back is the player's to add."""


def room_of(condition: str, rng: Generator) -> Room:
    """Raises ValueError on an unknown condition."""
    level = float(rng.uniform(-30, -20))
    if condition == "clean":
        return Room(noise_db=QUIET_DB, level_db=level)
    if condition == "noise":
        return Room(noise_db=10.0, level_db=level)
    if condition == "room":
        decay = float(rng.uniform(0.3, 0.6))
        return Room(decay=decay, wet=-3.0, noise_db=QUIET_DB, level_db=level)
    raise ValueError(f"unknown condition {condition!r}; known: {', '.join(CONDITIONS)}")
