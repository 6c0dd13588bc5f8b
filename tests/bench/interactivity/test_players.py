"""The model tick by tick, the harness turn by turn, and the suite around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.bench.interactivity import duplex, suite
from microturn.bench.interactivity.figures import Figure
from microturn.bench.interactivity.harness import Rules, Turn, converse
from microturn.bench.interactivity.page import Page
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Expected, Film, Scene, Shot
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Utterance, Voice, Word, say
from microturn.bench.interactivity.turns import TurnSession, tune
from microturn.runtime.output import TextEvent

pytest.importorskip("espeakng_loader")
pytest.importorskip("webrtcvad")

TICK = 1600


def scene(audio: Audio, film: Film | None = None, task: str = "idle") -> Scene:
    return Scene("a-scene", task, "test", audio, film, (), (), {"spoken_seconds": 1.0})


@dataclass
class Parrot:
    """A session that repeats what it hears, and says "w ##ow" in a tick that is loud."""

    loud_above: float = 0.05
    heard: list[Audio] = field(default_factory=list)
    seen: int = 0
    said: list[Any] = field(default_factory=list)
    closed_reason: str | None = None

    def push_audio(self, pcm: Audio, rate: int) -> None:
        assert rate == SAMPLE_RATE and pcm.shape == (TICK,)
        self.heard.append(pcm)

    def push_image(self, image: Any) -> None:
        self.seen += 1

    def poll(self) -> Any:
        return self.said.pop(0) if self.said else None

    def close(self) -> None:
        self.closed_reason = "closed"


class ParrotRuntime:
    """As much of a Runtime as a player uses."""

    def __init__(self) -> None:
        self.family = SimpleNamespace(
            shape=SimpleNamespace(
                input_rate=SAMPLE_RATE, input_samples=TICK, tick_ms=100, output_rate=SAMPLE_RATE
            )
        )
        self.opened: list[Parrot] = []

    def open(self, seed: int) -> Parrot:
        self.opened.append(Parrot())
        return self.opened[-1]

    def tick(self) -> None:
        for session in self.opened:
            if session.closed_reason is not None:
                continue
            start = 100 * (len(session.heard) - 1)
            loud = float(np.abs(session.heard[-1]).max()) > session.loud_above
            words = (TextEvent(start, 1, " w"), TextEvent(start + 50, 2, "ow")) if loud else ()
            session.said.append(
                SimpleNamespace(audio=session.heard[-1], words=words, start_ms=start)
            )


def test_what_a_tick_says_is_heard_after_it() -> None:
    audio = np.zeros(10 * TICK + 7, np.float32)
    audio[3 * TICK : 4 * TICK] = 0.5
    film = Film((Shot(0.0, Figure()),))
    runtime: Any = ParrotRuntime()
    (first, second) = duplex.play(runtime, [scene(audio, film), scene(0 * audio)])
    assert [(word.text, round(word.start, 6)) for word in first.words] == [("wow", 0.4)]
    assert second.words == () and runtime.opened[0].seen == 10
    assert first.audio is not None and len(first.audio) == 11 * TICK
    assert np.abs(first.audio[: 4 * TICK]).max() < 0.1 < np.abs(first.audio[4 * TICK :]).max()


def test_its_own_voice_leaks_back_a_tick_later() -> None:
    audio = np.zeros(20 * TICK, np.float32)
    audio[2 * TICK : 6 * TICK] = 0.5
    runtime: Any = ParrotRuntime()
    duplex.play(runtime, [scene(audio)], leak_db=-30.0)
    heard = np.concatenate(runtime.opened[0].heard)
    extra = np.abs(heard - audio)
    assert pytest.approx(float(extra.max()), rel=0.2) == 0.5 * 10**-1.5
    assert extra[: 3 * TICK].max() < 1e-6


def test_pieces_become_words() -> None:
    events = [(" re", 0), ("mind", 50), (" me", 100), (".", 150), (" Stop", 400)]
    words = duplex.spoken_words(TextEvent(ms, 0, piece) for piece, ms in events)
    assert [(w.text, w.start) for w in words] == [("remind", 0.0), ("me", 0.1), ("stop", 0.4)]


@dataclass
class Answers:
    """Says "one two three", a word a second."""

    turns: list[Turn] = field(default_factory=list)

    def answer(self, turn: Turn) -> Utterance:
        self.turns.append(turn)
        words = tuple(Word(w, float(i), i + 0.4) for i, w in enumerate(("one", "two", "three")))
        return Utterance(np.full(3 * SAMPLE_RATE, 0.2, np.float32), words)


def placed(seconds: float, *parts: tuple[float, str]) -> Audio:
    audio = 1e-3 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))
    for at, text in parts:
        said = say(text, Voice("en-us")).audio
        audio[round(at * SAMPLE_RATE) :][: len(said)] += 0.5 * said
    return audio.astype(np.float32)


def test_a_turn_is_answered_once_it_is_over() -> None:
    audio, model = placed(8, (1.0, "what comes after seven")), Answers()
    end = 1.0 + say("what comes after seven", Voice("en-us")).seconds
    reply = converse(scene(audio), model, Rules(silence_ms=400, thinking_ms=100))
    (turn,) = model.turns
    assert turn.start == pytest.approx(0.9, abs=0.15)
    assert [word.text for word in reply.words] == ["one", "two", "three"]
    assert reply.words[0].start == pytest.approx(end + 0.5, abs=0.15)
    assert reply.audio is not None and reply.audio[round((end + 1) * SAMPLE_RATE)] > 0.1


def test_speech_cancels_an_answer_and_is_the_next_turn() -> None:
    first = say("what comes after seven", Voice("en-us")).seconds
    audio, model = placed(9, (1.0, "what comes after seven"), (first + 2.6, "stop")), Answers()
    reply = converse(scene(audio), model, Rules())
    assert len(model.turns) == 2
    assert [word.text for word in reply.words][:2] == ["one", "two"]
    assert reply.words[2].text == "one", "the rest of the first answer is lost"
    assert converse(scene(placed(3)), model, Rules()).words == ()


def test_between_turns_no_time_passes_for_the_model() -> None:
    runtime: Any = ParrotRuntime()
    model = TurnSession(runtime)
    quiet = np.zeros(3 * TICK, np.float32)
    answer = model.answer(Turn(5.0, quiet, [np.zeros((4, 4, 3), np.uint8)] * 7))
    assert answer.words == () and runtime.opened[0].seen == 7
    assert len(runtime.opened[0].heard) == 3 + 8 and answer.seconds == pytest.approx(0.8)
    loud = model.answer(Turn(50.0, quiet + 0.3))
    assert loud.words == (), "what it says while it is spoken to is lost"


def test_tuning_takes_the_promptest_of_the_best() -> None:
    ends = {"ends": (1.0,), "idle": ()}
    question = Scene(
        "q", "latency", "validation", placed(3), None, (Expected("two", 1.2),), (), ends
    )

    def play(scene: Scene, rules: Rules) -> Reply:
        right = rules.silence_ms >= 400 and rules.aggressiveness == 2
        return Reply((Word("two" if right else "three", 1.5, 1.8),))

    rules, share = tune(play, [question])
    assert (rules.silence_ms, rules.aggressiveness, share) == (400, 2, 1.0)


def test_the_suite_scores_text_and_sound_apart_and_draws_a_page(tmp_path: Path) -> None:
    plan = suite.Plan(("idle",), count=3)
    page = Page(tmp_path, per_task=2)

    def play(scenes: Sequence[Scene]) -> list[Reply]:
        return [Reply((), np.zeros(len(s.audio), np.float32)) for s in scenes]

    def ear(audio: Audio) -> tuple[Word, ...]:
        return (Word("ghost<", 1.0, 1.2),)

    def watch(played: suite.Played) -> None:
        page.add("microturn", played)

    rows = [
        suite.row(plan, "microturn", task, by, marks)
        for task, by, marks in suite.run(plan, play, ear, watch)
    ]
    by_text, by_audio = rows
    assert by_text["score"] == 100 and by_audio["score"] == 0 and by_text["count"] == 3
    assert by_audio["case"] == "task=idle,split=test,condition=clean,scored=audio"
    assert "ratios, not values, compare" in by_text["note"]
    html = page.write().read_text()
    assert html.count("<audio") == 2 and "ghost&lt;" in html
    assert len(list(tmp_path.glob("*.flac"))) == 2
