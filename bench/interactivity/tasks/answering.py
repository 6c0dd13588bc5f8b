"""Plain questions, answered as soon as they are over; and talk that wants no answer."""

from __future__ import annotations

from numpy.random import Generator

from microturn.bench.interactivity.scene import Expected, Scene, Take, room_of
from microturn.bench.interactivity.splits import Split, pick, spoken
from microturn.bench.interactivity.vocabulary import NUMBERS, SENTENCES

QUESTIONS = (
    "what comes after {n}",
    "which number comes after {n}",
    "tell me what comes after {n}",
    "what number follows {n}",
    "what is the number after {n}",
    "please tell me what comes after {n}",
)
REACTION = 0.25
"""Seconds from the end of a question to its answer, for one who knows it."""
LONGEST = 3.0
"""An answer that takes longer is none."""


def latency(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Two or three questions; before each, in half of the cases, a sentence for nobody."""
    voice, take = split.voice(rng), Take()
    at = float(rng.uniform(0.3, 1.0))
    expected: list[Expected] = []
    idle: list[tuple[float, float]] = []
    ends: list[float] = []
    for _ in range(int(rng.integers(2, 4))):
        if rng.random() < 0.5:
            begin, at = at, take.say(spoken(pick(rng, SENTENCES), voice), at)
            idle.append((begin, at))
            at += float(rng.uniform(0.8, 1.5))
        question, n = split.wording(rng, QUESTIONS), int(rng.integers(1, 20))
        ends.append(take.say(spoken(question.format(n=NUMBERS[n]), voice), at))
        expected.append(Expected(NUMBERS[n + 1], ends[-1] + REACTION))
        at = ends[-1] + LONGEST + float(rng.uniform(0.2, 0.8))
    return Scene(
        name=name,
        task="latency",
        split=split.name,
        audio=take.record(at, room_of(condition, rng), rng),
        film=None,
        expected=tuple(expected),
        heard=take.heard,
        facts={"ends": tuple(ends), "idle": tuple(idle)},
    )


def idle(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """A quarter of a minute of talk that asks for nothing: everything said is a false start."""
    voice, take = split.voice(rng), Take()
    at, spoken_seconds = float(rng.uniform(0.2, 1.0)), 0.0
    while at < 15:
        ends = take.say(spoken(pick(rng, SENTENCES), voice), at)
        spoken_seconds += ends - at
        at = ends + float(rng.uniform(0.2, 1.5))
    return Scene(
        name=name,
        task="idle",
        split=split.name,
        audio=take.record(at, room_of(condition, rng), rng),
        film=None,
        expected=(),
        heard=take.heard,
        facts={"spoken_seconds": spoken_seconds},
    )
