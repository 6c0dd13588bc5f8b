"""Hearing first: words one after the other, with nothing to do but to note them."""

from __future__ import annotations

from numpy.random import Generator

from microturn.bench.interactivity.scene import Scene, Take, room_of
from microturn.bench.interactivity.splits import Split, pick, spoken
from microturn.bench.interactivity.vocabulary import SENTENCES
from microturn.bench.training.lexicon import heard_words

SECONDS = 12.0


def drill(split: Split, rng: Generator, name: str, condition: str) -> Scene:
    """Twelve seconds of single words and runs of two to five, now and then a sentence."""
    voice, take = split.voice(rng), Take()
    at, words = float(rng.uniform(0.1, 0.5)), heard_words()
    while at < SECONDS - 2.0:
        if rng.random() < 0.1:
            text = pick(rng, SENTENCES)
        else:
            count = 1 if rng.random() < 0.4 else int(rng.integers(2, 6))
            text = " ".join(pick(rng, words) for _ in range(count))
        at = take.say(spoken(text, voice), at) + float(rng.uniform(0.05, 0.6))
    audio = take.record(at + 0.3, room_of(condition, rng), rng)
    return Scene(name, "drill", split.name, audio, None, (), take.heard)
