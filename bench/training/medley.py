"""One request after the other in one session: what was asked before must be over and done with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from microturn.bench.interactivity.scene import Reel, Scene
from microturn.bench.interactivity.speech import Word
from microturn.bench.interactivity.splits import Split, pick
from microturn.bench.interactivity.tasks.answering import latency
from microturn.bench.interactivity.tasks.counting import interrupt
from microturn.bench.interactivity.tasks.repcount import repcount
from microturn.bench.interactivity.tasks.timespeak import timespeak

Maker = Callable[[Split, Generator, str, str], Scene]

TICK = 0.1
BLIND: tuple[Maker, ...] = (timespeak, interrupt, latency)


def medley(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Two scenes without pictures."""
    parts = [_over(pick(rng, BLIND), split, rng, name, condition) for _ in range(2)]
    return _joined(parts[0], parts[1], "medley")


def show(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Someone in the picture who first says something else, then is to be counted."""
    first = _over(pick(rng, BLIND), split, rng, name, condition)
    return _joined(first, repcount(split, rng, name, condition), "show")


def _over(make: Maker, split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """A scene at whose end nothing is asked for any more."""
    while True:
        scene = make(split, rng, name, condition)
        if make is not timespeak or scene.facts["once"] or scene.facts["stop"] is not None:
            return scene


def _joined(one: Scene, two: Scene, task: str) -> Scene:
    by = one.seconds
    film = None
    if two.film is not None:  # whoever is in it stands there from the first
        ticks = round((by + two.seconds) / TICK)
        film = Reel([two.film.picture(k * TICK - by) for k in range(ticks)], 1 / TICK)
    expected = [replace(want, at=want.at + by) for want in two.expected]
    heard = [Word(word.text, word.start + by, word.end + by) for word in two.heard]
    return Scene(
        name=one.name,
        task=task,
        split=one.split,
        audio=np.concatenate([one.audio, two.audio]),
        film=film,
        expected=(*one.expected, *expected),
        heard=(*one.heard, *heard),
        hush=(*one.hush, *(moment + by for moment in two.hush)),
    )
