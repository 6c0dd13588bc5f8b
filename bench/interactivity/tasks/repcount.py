"""RepCount: count a repeated motion aloud, as it is seen."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from microturn.bench.interactivity.figures import (
    MOTIONS,
    Performance,
    made_up_motion,
    random_figure,
)
from microturn.bench.interactivity.scene import Expected, Film, Scene, Shot, Take, room_of
from microturn.bench.interactivity.splits import Split, pick, spoken
from microturn.bench.interactivity.vocabulary import NUMBERS

REQUESTS = (
    "count the {name}",
    "please count the {name}",
    "count the {name} for me",
    "count these {name}",
    "please count out the {name}",
    "please count out reps for {name}",
)
SEEN = {
    "train": ("squats", "jumps", "raises", "bends", "steps"),
    "validation": ("waves", "claps"),
    "test": ("kicks", "reaches", "swings"),
}
"""Named motions by split; two thirds of train's are made up and called "reps" (a trial's finding:
variety of motions decides)."""
MADE_UP = 2 / 3
WORD_SECONDS = 0.65
"""A number takes as long to say: faster repetitions are counted at every second or third."""
DUE = 0.2
"""Seconds from the end of a repetition to its number."""


def repcount(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """2 to 20 repetitions, all counts alike; periods of 0.5 to 3.5 s that wander."""
    voice, take = split.voice(rng), Take()
    if split.name == "train" and rng.random() < MADE_UP:
        motion, called = made_up_motion(rng), "reps"
    else:
        called = pick(rng, SEEN[split.name])
        motion = MOTIONS[called]
    scale = float(rng.uniform(0.75, 1.15))
    motion = {joint: scale * by for joint, by in motion.items()}
    asked = take.say(
        spoken(split.wording(rng, REQUESTS).format(name=called), voice),
        float(rng.uniform(0.2, 0.8)),
    )
    start = asked + float(rng.uniform(0.4, 2.0))
    count = int(rng.integers(2, 21))
    periods = _periods(rng, count)
    ends = start + np.cumsum(periods)
    performance = Performance(
        motion, start, tuple(float(e) for e in ends), sharpness=float(rng.uniform(0.8, 1.6))
    )
    seconds = performance.end + float(rng.uniform(1.5, 3.0))
    room = room_of(condition, rng)
    return Scene(
        name=name,
        task="repcount",
        split=split.name,
        audio=take.record(seconds, room, rng),
        film=Film((Shot(0.0, random_figure(rng), performance),)),
        expected=counted(performance.ends),
        heard=take.heard,
        facts={"asked": asked, "start": start, "ends": performance.ends, "called": called},
    )


def _periods(rng: Generator, count: int) -> np.ndarray:
    """Of one repetition each: a pace between 0.5 and 3.5 s, drawn so that slow and fast are as
    frequent; it drifts by up to a third and trembles by 8 %. At most 40 s in all.
    """
    slowest = min(3.5, 40 / count)
    pace = float(np.exp(rng.uniform(np.log(0.55), np.log(slowest))))
    drift = np.linspace(1, float(rng.uniform(0.75, 1.33)), count)
    trembling = 1 + 0.08 * np.clip(rng.standard_normal(count), -2, 2)
    return np.clip(pace * drift * trembling, 0.5, 3.5)


def counted(ends: tuple[float, ...]) -> tuple[Expected, ...]:
    """What one who counts aloud says: a number at the end of each repetition, of those that end
    while another number is being said only the newest, once there is time.
    """
    said: list[Expected] = []
    free = 0.0
    for number, end in enumerate(ends, 1):
        following = ends[number] if number < len(ends) else np.inf
        at = max(end + DUE, free)
        if at > following + DUE:  # the next number is due before this one can be said
            continue
        said.append(Expected(NUMBERS[number], at))
        free = at + WORD_SECONDS
    return tuple(said)
