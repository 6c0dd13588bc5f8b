"""Scenes in turn format: what the same network, used turn by turn, is trained on.

A scene is played through the harness to an ideal network; what that is fed, and what it answers, is
a scene again: turns one after the other, each followed by its answer in silence. The same trainer
makes scripts of it as of any scene, and trains on exactly what the harness feeds, as the same lines
make both.

An answer holds what is known when its turn is over: what the interaction model says between this
turn and the next, word after word, without the waiting. A word asked for every few seconds is said
once. What a picture shows only later is not known: nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.random import Generator

from microturn.bench.interactivity.harness import Rules, live
from microturn.bench.interactivity.lanes import Moment
from microturn.bench.interactivity.scene import Expected, Reel, Scene
from microturn.bench.interactivity.speech import Audio, Word
from microturn.bench.interactivity.splits import Split
from microturn.bench.interactivity.tasks import TASKS
from microturn.bench.interactivity.tuning import AGGRESSIVENESS, SILENCES_MS
from microturn.bench.interactivity.vocabulary import NUMBERS
from microturn.model.family import TickShape
from microturn.runtime.output import TextEvent

SLOTS_PER_WORD = 13
"""Slots from one word of an answer to the next: the longest word, and a breath."""

COUNTING = ("interrupt", "backchannel", "pause")
SEEING = ("repcount", "charades", "proactive")


@dataclass(frozen=True, eq=False)
class Spoken:
    """A tick of the ideal network, as the harness reads it."""

    start_ms: int
    audio: Audio
    words: tuple[TextEvent, ...] = ()


@dataclass
class _Turn:
    """Where a turn lies in the scene and in what was fed; seconds."""

    begin: float
    fed: float
    end: float


@dataclass
class _Ideal:
    """Answers turns of a scene as their trainer would have it, and notes all that it meets."""

    scene: Scene
    shape: TickShape
    moments: list[Moment] = field(default_factory=list)
    turns: list[_Turn] = field(default_factory=list)
    said: list[Expected] = field(default_factory=list)
    _words: Iterator[str] = field(default_factory=lambda: iter(()))
    _free: int = 0
    """The slot in which the next word may begin."""

    def meet(self, moment: Moment) -> Spoken:
        tick = self.shape.tick_ms / 1000
        now = len(self.moments)
        listening = bool(self.moments) and self.moments[-1].at is not None
        self.moments.append(moment)
        words: tuple[TextEvent, ...] = ()
        if moment.at is None:
            if listening:
                self._words, self._free = iter(self._answer()), now * self.shape.frames
            words = tuple(self._speak(now))
        elif not listening:
            self.turns.append(_Turn(moment.at, now * tick, moment.at + tick))
        else:
            self.turns[-1].end = moment.at + tick
        return Spoken(
            now * self.shape.tick_ms, np.zeros(self.shape.output_samples, np.float32), words
        )

    def _speak(self, tick: int) -> Iterator[TextEvent]:
        """A word that is due in this tick. It is heard once the tick is over: `Expected` says when,
        in the middle of the slot, so that no rounding moves it.
        """
        seconds = self.shape.tick_ms / 1000
        slot_s = seconds / self.shape.frames
        first = tick * self.shape.frames
        for slot in range(first, first + self.shape.frames):
            if slot < self._free or (word := next(self._words, None)) is None:
                continue
            self._free = slot + SLOTS_PER_WORD
            self.said.append(Expected(word, seconds + (slot + 0.5) * slot_s))
            yield TextEvent(1000 * slot * slot_s, 0, f" {word}")

    def _answer(self) -> tuple[str, ...]:
        """To the last turn."""
        scene, turn = self.scene, self.turns[-1]
        if scene.task in SEEING:
            return ()
        begins = [word.start for word in scene.heard if word.start >= turn.end]
        until = min(begins, default=scene.seconds)
        if scene.task in COUNTING:
            spoken = [word.end for word in scene.heard if word.end <= turn.end]
            after = max(spoken, default=turn.end)
            if not any(after < want.at < until for want in scene.expected):
                return ()
            last = NUMBERS.index(self.said[-1].word) if self.said else 0
            return NUMBERS[last + 1 :]
        due = tuple(want.word for want in scene.expected if turn.begin < want.at < until)
        return due[:1] if scene.task == "timespeak" else due

    def heard(self) -> tuple[Word, ...]:
        """Every word of a turn, by the time it was fed."""
        found = []
        for turn in self.turns:
            later = turn.fed - turn.begin
            found += [
                Word(word.text, max(turn.fed, word.start + later), word.end + later)
                for word in self.scene.heard
                if turn.begin < word.end <= turn.end
            ]
        return tuple(found)


def in_turns(scene: Scene, shape: TickShape, rules: Rules) -> Scene:
    """`scene` as the harness feeds it to an ideal network in turn format. One tick of silence where
    the harness hears nobody.
    """
    ideal = _Ideal(scene, shape)
    life = live(scene, shape, rules)
    try:
        moment = next(life)
        while True:
            moment = life.send(ideal.meet(moment))
    except StopIteration:
        pass
    met = ideal.moments or [
        Moment(
            np.zeros(shape.input_samples, np.float32),
            scene.film.picture(0.0) if scene.film is not None else None,
        )
    ]
    taken = [moment.picture for moment in met if moment.picture is not None]
    return replace(
        scene,
        audio=np.concatenate([moment.audio for moment in met]),
        film=Reel(taken, 1000 / shape.tick_ms) if taken else None,
        expected=tuple(ideal.said),
        heard=ideal.heard(),
        facts={},
        hush=(),
    )


Maker = Callable[[Split, Generator, str, str], Scene]


def turn_makers(shape: TickShape) -> Mapping[str, Maker]:
    """By task, what makes its scenes in turn format, under rules drawn from all that tuning may
    choose.
    """
    return {task: partial(_make, maker, shape) for task, maker in TASKS.items()}


def _make(
    maker: Maker, shape: TickShape, split: Split, rng: Generator, name: str, condition: str
) -> Scene:
    scene = maker(split, rng, name, condition)
    rules = Rules(
        aggressiveness=int(rng.choice(AGGRESSIVENESS)), silence_ms=int(rng.choice(SILENCES_MS))
    )
    return in_turns(scene, shape, rules)
