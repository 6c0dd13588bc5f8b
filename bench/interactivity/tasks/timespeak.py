"""TimeSpeak: say a word at the times that were asked for, until told to stop."""

from __future__ import annotations

from numpy.random import Generator

from microturn.bench.interactivity.scene import Expected, Scene, Take, room_of
from microturn.bench.interactivity.splits import Split, spoken
from microturn.bench.interactivity.vocabulary import NUMBERS, REMINDERS

EVERY = (
    "say {word} every {n} seconds",
    "please say {word} every {n} seconds",
    "every {n} seconds say {word}",
    "remind me to {word} every {n} seconds",
    "every {n} seconds please say {word}",
    "please remind me to {word} every {n} seconds",
)
ONCE = (
    "say {word} in {n} seconds",
    "in {n} seconds say {word}",
    "please say {word} in {n} seconds",
    "remind me to {word} in {n} seconds",
    "in {n} seconds please say {word}",
    "please remind me to {word} in {n} seconds",
)
STOP = ("stop", "please stop", "stop now", "stop it please", "now stop", "okay stop")
PERIODS = (2, 3, 4, 5, 6)
LATE_CUT = 0.8
"""A scene that is not stopped ends this long before the next utterance would be due."""


def timespeak(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """A third asks for one utterance; of the others half are told to stop, midway between two."""
    voice, take = split.voice(rng), Take()
    word, n = split.pair(rng, REMINDERS, PERIODS)
    begin = float(rng.uniform(0.3, 1.5))
    once = rng.random() < 1 / 3
    request = split.wording(rng, ONCE if once else EVERY).format(word=word, n=NUMBERS[n])
    asked = take.say(spoken(request, voice), begin)
    count = 1 if once else int(rng.integers(2, 5))
    due = [asked + n * (k + 1) for k in range(count)]
    stop = None
    if once:
        end = due[-1] + float(rng.uniform(2.0, 4.0))
    elif rng.random() < 0.5:
        order = spoken(split.wording(rng, STOP), voice)
        stop = take.say(order, due[-1] + 0.5 * n - 0.5 * order.seconds)
        end = stop + n + float(rng.uniform(0.5, 1.5))
    else:
        end = due[-1] + n - LATE_CUT
    room = room_of(condition, rng)
    return Scene(
        name=name,
        task="timespeak",
        split=split.name,
        audio=take.record(end, room, rng),
        film=None,
        expected=tuple(Expected(word, at) for at in due),
        heard=take.heard,
        facts={"asked": asked, "period": n, "once": bool(once), "stop": stop},
    )
