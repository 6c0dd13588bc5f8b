"""The model tick by tick and the harness turn by turn, side by side in the lanes of a runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.bench.interactivity import duplex, harness, lanes
from microturn.bench.interactivity.figures import Figure
from microturn.bench.interactivity.harness import Rules
from microturn.bench.interactivity.lanes import Moment, Says
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Film, Scene, Shot
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Voice, say
from microturn.model.family import TickShape
from microturn.runtime.output import TextEvent

pytest.importorskip("espeakng_loader")
pytest.importorskip("webrtcvad")

TICK = 1600
SHAPE = TickShape(100, 2, SAMPLE_RATE, TICK, SAMPLE_RATE, TICK, 1, 16, 64)


def scene(audio: Audio, film: Film | None = None, name: str = "a-scene") -> Scene:
    return Scene(name, "idle", "test", audio, film, (), (), {"spoken_seconds": 1.0})


@dataclass
class Parrot:
    """A session that repeats what it hears, and says "w ##ow" in a tick that is loud."""

    heard: list[Audio] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    closed_reason: str | None = None

    def push_audio(self, pcm: Audio, rate: int) -> None:
        assert rate == SAMPLE_RATE and pcm.shape == (TICK,)
        self.heard.append(pcm)

    def push_image(self, image: Any) -> None:
        self.seen.append(image)

    def step(self) -> None:
        start = 100 * (len(self.heard) - 1)
        loud = float(np.abs(self.heard[-1]).max()) > 0.05
        words = (TextEvent(start, 1, " w"), TextEvent(start + 50, 2, "ow")) if loud else ()
        self.said.append(SimpleNamespace(audio=self.heard[-1], words=words, start_ms=start))

    def poll(self) -> Any:
        return self.said.pop(0) if self.said else None

    def close(self) -> None:
        self.closed_reason = "closed"


class ParrotRuntime:
    """As much of a Runtime as lanes use."""

    def __init__(self, slots: int = 4) -> None:
        self.family = SimpleNamespace(shape=SHAPE)
        self.opened: list[Parrot] = []
        self.most, self._slots = 0, slots

    @property
    def live(self) -> list[Parrot]:
        return [session for session in self.opened if session.closed_reason is None]

    @property
    def free_slots(self) -> int:
        return self._slots - len(self.live)

    def open(self, seed: int, sampling: Any) -> Parrot:
        self.opened.append(Parrot())
        return self.opened[-1]

    def tick(self) -> None:
        self.most = max(self.most, len(self.live))
        for session in self.live:
            session.step()


def play(runtime: Any, *scenes: Scene, leak_db: float | None = None) -> list[Reply]:
    cases = [lanes.Case(i, s, duplex.live(s, SHAPE, leak_db=leak_db)) for i, s in enumerate(scenes)]
    found = {case.key: reply for case, reply in lanes.play(runtime, cases)}
    return [found[i] for i in range(len(scenes))]


def test_what_a_tick_says_is_heard_after_it() -> None:
    audio = np.zeros(10 * TICK + 7, np.float32)
    audio[3 * TICK : 4 * TICK] = 0.5
    runtime = ParrotRuntime()
    first, second = play(runtime, scene(audio, Film((Shot(0.0, Figure()),))), scene(0 * audio))
    assert [(word.text, round(word.start, 6)) for word in first.words] == [("wow", 0.4)]
    assert second.words == () and len(runtime.opened[0].seen) == 11
    assert first.audio is not None and len(first.audio) == 11 * TICK
    assert np.abs(first.audio[: 4 * TICK]).max() < 0.1 < np.abs(first.audio[4 * TICK :]).max()


def test_as_one_scene_ends_the_next_takes_its_lane() -> None:
    scenes = []
    for index, ticks in enumerate((3, 9, 2, 0, 5, 4)):
        audio = np.zeros(ticks * TICK, np.float32)
        audio[(index % 2) * TICK : (index % 2 + 1) * TICK] = 0.5
        scenes.append(scene(audio))
    runtime = ParrotRuntime(slots=2)
    replies = play(runtime, *scenes)
    assert runtime.most == 2
    assert [len(parrot.heard) for parrot in runtime.opened] == [3, 9, 2, 0, 5, 4]
    for index, reply in enumerate(replies):
        at = [round(word.start, 6) for word in reply.words]
        assert at == ([] if index == 3 else [0.1 + 0.1 * (index % 2)])


def test_its_own_voice_leaks_back_a_tick_later() -> None:
    audio = np.zeros(20 * TICK, np.float32)
    audio[2 * TICK : 6 * TICK] = 0.5
    runtime = ParrotRuntime()
    play(runtime, scene(audio), leak_db=-30.0)
    heard = np.concatenate(runtime.opened[0].heard)
    extra = np.abs(heard - audio)
    assert pytest.approx(float(extra.max()), rel=0.2) == 0.5 * 10**-1.5
    assert extra[: 3 * TICK].max() < 1e-6


def test_pieces_become_words() -> None:
    events = [(" re", 0), ("mind", 50), (" me", 100), (".", 150), (" Stop", 400)]
    words = duplex.spoken_words(TextEvent(ms, 0, piece) for piece, ms in events)
    assert [(w.text, w.start) for w in words] == [("remind", 0.0), ("me", 0.1), ("stop", 0.4)]


def converse(scene: Scene, answer: Callable[[int], str | None]) -> tuple[Reply, list[Moment]]:
    """The harness around a network that says answer(k) in tick k of an answer."""
    met: list[Moment] = []
    life, into = harness.live(scene, SHAPE, Rules()), 0
    try:
        moment = next(life)
        while True:
            into = 0 if moment.at is not None else into + 1
            met.append(moment)
            word = answer(into - 1) if into else "lost"
            start = 100 * len(met)
            words = (TextEvent(start + 50, 0, f" {word}"),) if word else ()
            said: Says = Said(start, np.full(TICK, 0.2, np.float32), words)
            moment = life.send(said)
    except StopIteration as over:
        reply: Reply = over.value
    return reply, met


@dataclass(frozen=True)
class Said:
    start_ms: int
    audio: Audio
    words: tuple[TextEvent, ...]


def count(tick: int) -> str | None:
    """A word every half second, three in all."""
    return ("one", "two", "three")[tick // 5] if tick % 5 == 0 and tick < 15 else None


def placed(seconds: float, *parts: tuple[float, str]) -> Audio:
    audio = 1e-3 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))
    for at, text in parts:
        said = say(text, Voice("en-us")).audio
        audio[round(at * SAMPLE_RATE) :][: len(said)] += 0.5 * said
    return audio.astype(np.float32)


QUESTION = "what comes after seven"


def test_a_turn_is_answered_once_it_is_over() -> None:
    audio = placed(8, (1.0, QUESTION))
    film = Film((Shot(0.0, Figure()), Shot(2.0, Figure(), present=False)))
    reply, met = converse(scene(audio, film), count)
    end = 1.0 + say(QUESTION, Voice("en-us")).seconds
    turn = [moment for moment in met if moment.at is not None]
    answer = met[len(turn) :]
    assert turn[0].at == pytest.approx(0.9, abs=0.15)
    assert len(turn) == pytest.approx(10 * (end + 0.4 - turn[0].at), abs=2)
    assert all(moment.at is None and not moment.audio.any() for moment in answer)
    assert len(answer) == 11 + 8, "over once nothing was said for 800 ms"
    assert [word.text for word in reply.words] == ["one", "two", "three"], "nothing of the turn"
    assert reply.words[0].start == pytest.approx(end + 0.55, abs=0.15)
    assert reply.words[1].start - reply.words[0].start == pytest.approx(0.5)
    assert reply.audio is not None and reply.audio[round((end + 1) * SAMPLE_RATE)] > 0.1
    assert np.array_equal(answer[-1].picture, turn[-1].picture), "the last picture stays"
    seen = [moment.picture for moment in turn]
    assert np.array_equal(seen[0], film.picture(float(turn[0].at or 0)))


def test_speech_cancels_an_answer_and_is_the_next_turn() -> None:
    first = say(QUESTION, Voice("en-us")).seconds
    audio = placed(9, (1.0, QUESTION), (first + 2.2, "stop"))
    reply, met = converse(scene(audio), count)
    texts = [word.text for word in reply.words]
    assert texts[:2] == ["one", "two"] and texts[2] == "one", "the rest of the first is lost"
    turns = [k for k, m in enumerate(met) if m.at is not None and (not k or met[k - 1].at is None)]
    assert len(turns) == 2
    cancelled = turns[1] - sum(moment.at is not None for moment in met[: turns[1]])
    assert cancelled < 11, "what is cancelled is not even made"
    silent, met = converse(scene(placed(3)), count)
    assert silent.words == () and met == [] and silent.audio is not None


def test_an_answer_has_an_end() -> None:
    _, met = converse(scene(placed(25, (0.3, QUESTION))), lambda tick: "on")
    answer = [moment for moment in met if moment.at is None]
    assert len(answer) == harness.LONGEST_MS / 100
