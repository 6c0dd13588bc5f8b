"""Train, validation and test: who speaks, how things are worded, what combinations occur."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from numpy.random import Generator

from microturn.bench.interactivity.speech import Utterance, Voice, say

T = TypeVar("T")
U = TypeVar("U")

SPLITS = ("train", "validation", "test")

_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc")
_VARIANTS = {
    "train": (
        "m1 m3 m5 m7 m8 f1 f3 f5 Andy Alex Denis Gene Jacky Lee Michael Hugo Reed adam aunty "
        "benjamin boris caleb david ed grandma ian iven john linda paul quincy shelby steph victor"
    ),
    "validation": "m2 Annie Mike edward rob zac",
    "test": "m4 m6 f2 f4 Alicia Mario belinda grandpa max travis",
}


@dataclass(frozen=True)
class Split:
    """One of SPLITS. Voices of two splits share no variant; pairs fall in one split each."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in SPLITS:
            raise ValueError(f"unknown split {self.name!r}; known: {', '.join(SPLITS)}")

    @property
    def number(self) -> int:
        return SPLITS.index(self.name)

    def voice(self, rng: Generator) -> Voice:
        variant = pick(rng, _VARIANTS[self.name].split())
        return Voice(
            f"{pick(rng, _ACCENTS)}+{variant}",
            rate=int(rng.integers(140, 191)),
            pitch=int(rng.integers(25, 76)),
            range=int(rng.integers(30, 71)),
        )

    def wording(self, rng: Generator, wordings: Sequence[str]) -> str:
        """Of at least three wordings the last is the test's, the one before it validation's."""
        own = {"train": wordings[:-2], "validation": wordings[-2:-1], "test": wordings[-1:]}
        return pick(rng, own[self.name])

    def pair(self, rng: Generator, first: Sequence[T], second: Sequence[U]) -> tuple[T, U]:
        """A combination that no other split has: 7 of 10 are train's, 1 validation's, 2 test's."""
        allowed = [(a, b) for a in first for b in second if _split_of(a, b) == self.name]
        if not allowed:
            raise ValueError(f"no pair of {first} and {second} falls in {self.name}")
        return allowed[int(rng.integers(len(allowed)))]


def _split_of(first: object, second: object) -> str:
    digit = zlib.crc32(f"{first}/{second}".encode()) % 10
    return "train" if digit < 7 else "validation" if digit < 8 else "test"


def pick(rng: Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


@lru_cache(maxsize=4096)
def spoken(text: str, voice: Voice) -> Utterance:
    """`say`, remembered."""
    return say(text, voice)
