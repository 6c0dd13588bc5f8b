"""Someone counts aloud when asked to; what others say meanwhile stops it, or does not.

The scenarios of Full-Duplex-Bench v1.5 (spec/interaction.md 3): interruption, backchannel, talk to
somebody else, background speech; and a pause with its resumption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from numpy.random import Generator

from microturn.bench.interactivity.scene import Expected, Scene, Take, room_of
from microturn.bench.interactivity.speech import Voice
from microturn.bench.interactivity.splits import Split, pick, spoken
from microturn.bench.interactivity.vocabulary import ASIDES, BACKCHANNELS, NUMBERS, SENTENCES

REQUESTS = (
    "count to twenty",
    "please count to twenty",
    "count up to twenty",
    "please count up to twenty",
    "count from one to twenty",
    "please count aloud to twenty",
)
INTERRUPTIONS = ("stop", "stop it", "please stop", "that is enough", "stop now", "okay stop now")
PAUSES = ("wait", "wait please", "one moment", "hold on", "please wait", "wait a moment")
RESUMES = ("go on", "continue", "please go on", "you can go on", "please continue", "now go on")
FIRST, PACE = 0.5, 1.0
"""Seconds from the end of the request to "one", and from one number to the next."""
HUSH = 0.15
"""Seconds from the end of "stop" or "wait" until whoever counts falls silent, within a number too.
"""
SILENT = 3.0
"""Seconds after an interruption that are listened to."""


def interrupt(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Told to stop after three to nine numbers, at any moment between them or during one."""
    voice, take = split.voice(rng), Take()
    asked = _ask(split, rng, take, voice)
    order = spoken(split.wording(rng, INTERRUPTIONS), voice)
    begin = asked + FIRST + PACE * float(rng.uniform(3, 9))
    ends = take.say(order, begin)
    expected = _numbers(asked + FIRST, 1, ends)
    facts = {"asked": asked, "begin": begin, "ends": ends, "until": ends + SILENT}
    seconds, hush = ends + SILENT, (ends + HUSH,)
    return _scene("interrupt", split, rng, name, condition, take, seconds, expected, facts, hush)


def backchannel(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Two or three times something is said that is no reason to stop: a sound of attention, a word
    to somebody else, or others talking in the background.
    """
    voice, take = split.voice(rng), Take()
    asked = _ask(split, rng, take, voice)
    kind = pick(rng, ("backchannel", "aside", "background"))
    say = _OTHERS[kind]
    at, ends = asked + FIRST + PACE * float(rng.uniform(1.5, 3.5)), []
    for _ in range(int(rng.integers(2, 4))):
        ends.append(say(split, rng, take, voice, at))
        at = ends[-1] + float(rng.uniform(1.5, 3.0))
    seconds = ends[-1] + 2.5
    expected = _numbers(asked + FIRST, 1, min(seconds - 0.3, asked + FIRST + 20 * PACE))
    facts = {"asked": asked, "kind": kind, "ends": tuple(ends), "until": seconds}
    return _scene("backchannel", split, rng, name, condition, take, seconds, expected, facts)


def pause(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Told to wait, then to go on: the count continues where it was."""
    voice, take = split.voice(rng), Take()
    asked = _ask(split, rng, take, voice)
    order = spoken(split.wording(rng, PAUSES), voice)
    paused = take.say(order, asked + FIRST + PACE * float(rng.uniform(2, 6)))
    before = _numbers(asked + FIRST, 1, paused)
    at = paused + float(rng.uniform(2.0, 5.0))
    resumed = take.say(spoken(split.wording(rng, RESUMES), voice), at)
    seconds = resumed + FIRST + PACE * 3
    after = _numbers(resumed + FIRST, len(before) + 1, seconds - 0.3)
    facts = {"asked": asked, "paused": paused, "resumed": resumed, "until": seconds}
    expected = before + after
    hush = (paused + HUSH,)
    return _scene("pause", split, rng, name, condition, take, seconds, expected, facts, hush)


def _ask(split: Split, rng: Generator, take: Take, voice: Voice) -> float:
    request = spoken(split.wording(rng, REQUESTS), voice)
    return take.say(request, float(rng.uniform(0.3, 1.0)))


def _numbers(first_at: float, first: int, until: float) -> tuple[Expected, ...]:
    """The numbers whose time has come by `until`; those after twenty are not said."""
    numbers: list[Expected] = []
    at = first_at
    while at < until and first + len(numbers) < len(NUMBERS):
        numbers.append(Expected(NUMBERS[first + len(numbers)], at))
        at += PACE
    return tuple(numbers)


def _attention(split: Split, rng: Generator, take: Take, voice: Voice, at: float) -> float:
    return take.say(spoken(pick(rng, BACKCHANNELS), voice), at)


def _aside(split: Split, rng: Generator, take: Take, voice: Voice, at: float) -> float:
    return take.say(spoken(pick(rng, ASIDES), voice), at)


def _background(split: Split, rng: Generator, take: Take, voice: Voice, at: float) -> float:
    """Another voice, 12 to 18 dB below the one in front."""
    level = -float(rng.uniform(12, 18))
    return take.say(spoken(pick(rng, SENTENCES), split.voice(rng)), at, level)


_OTHERS: dict[str, Callable[[Split, Generator, Take, Voice, float], float]] = {
    "backchannel": _attention,
    "aside": _aside,
    "background": _background,
}


def _scene(
    task: str,
    split: Split,
    rng: Generator,
    name: str,
    condition: str,
    take: Take,
    seconds: float,
    expected: tuple[Expected, ...],
    facts: Mapping[str, object],
    hush: tuple[float, ...] = (),
) -> Scene:
    audio = take.record(seconds, room_of(condition, rng), rng)
    return Scene(name, task, split.name, audio, None, expected, take.heard, facts, hush)
