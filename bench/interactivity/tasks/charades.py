"""Charades-style: say when a named motion starts, and when it stops."""

from __future__ import annotations

from numpy.random import Generator

from microturn.bench.interactivity.figures import MOTIONS, Performance, random_figure
from microturn.bench.interactivity.scene import Expected, Film, Scene, Shot, Take, room_of
from microturn.bench.interactivity.splits import Split, spoken

REQUESTS = (
    "say start when the {name} start and stop when they stop",
    "tell me when the {name} start and when they stop",
    "say when the {name} start and stop",
    "please say start when the {name} start and stop when they stop",
    "when the {name} start say start and when they stop say stop",
    "please tell me when the {name} start and when they stop",
)
REACTION = 0.5
"""Seconds a watcher needs to know that a motion has begun, or is over."""


def charades(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """One stretch of the named motion; in half of the scenes another motion before or after it."""
    voice, take = split.voice(rng), Take()
    figure = random_figure(rng)
    called, other = (str(n) for n in rng.choice(list(MOTIONS), 2, replace=False))
    asked = take.say(
        spoken(split.wording(rng, REQUESTS).format(name=called), voice),
        float(rng.uniform(0.2, 0.6)),
    )
    order = [called]
    if rng.random() < 0.5:
        order.insert(int(rng.integers(0, 2)), other)
    shots = [Shot(0.0, figure)]
    at = asked + float(rng.uniform(0.6, 3.0))
    start = stop = at
    for motion in order:
        performance = _stretch(rng, motion, at)
        shots.append(Shot(at, figure, performance))
        if motion == called:
            start, stop = at, performance.end
        at = performance.end + float(rng.uniform(1.5, 3.0))
    room = room_of(condition, rng)
    return Scene(
        name=name,
        task="charades",
        split=split.name,
        audio=take.record(at, room, rng),
        film=Film(tuple(shots)),
        expected=(Expected("start", start + REACTION), Expected("stop", stop + REACTION)),
        heard=take.heard,
        facts={"asked": asked, "start": start, "stop": stop, "called": called},
    )


def _stretch(rng: Generator, motion: str, at: float) -> Performance:
    """3 to 9 s of one motion at an even pace."""
    period = float(rng.uniform(0.7, 1.8))
    count = max(2, round(float(rng.uniform(3.0, 9.0)) / period))
    scale = float(rng.uniform(0.8, 1.15))
    moved = {joint: scale * by for joint, by in MOTIONS[motion].items()}
    return Performance(moved, at, tuple(at + period * (k + 1) for k in range(count)))
