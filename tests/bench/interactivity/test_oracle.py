"""Players who know the answers, or nothing: what the scorers make of them, by text and by ear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from microturn.bench.interactivity.acoustics import mix
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.scoring import gather, score
from microturn.bench.interactivity.speech import SAMPLE_RATE, Word
from microturn.bench.interactivity.tasks import TASKS, make_scene
from microturn.bench.interactivity.vocabulary import SPOKEN
from microturn.bench.training.voice import spoken

pytest.importorskip("espeakng_loader")
pytest.importorskip("pocketsphinx")

from microturn.bench.interactivity.recogniser import Recogniser

SCENES = 1
LEAST = {"charades": 0.75, "proactive": 0.85}
"""A watcher's reaction is part of what is expected, and costs; all else is worth full marks."""
SLOT = 0.05
"""Sound follows its text by a slot."""


def oracle(scene: Scene) -> Reply:
    """Says what is expected, when it is, in the model's voice; silent when it is told to be."""
    parts = [(want.at + SLOT, spoken(want.word)) for want in scene.expected]
    audio = mix(len(scene.audio), *parts)
    for moment in scene.hush:
        until = min((w.at for w in scene.expected if w.at > moment), default=scene.seconds)
        audio[round(moment * SAMPLE_RATE) : round(until * SAMPLE_RATE)] = 0
    return Reply(tuple(Word(w.word, w.at, w.at + 0.35) for w in scene.expected), audio)


@pytest.fixture(scope="module")
def ear() -> Recogniser:
    return Recogniser(SPOKEN)


@pytest.mark.parametrize("task", TASKS)
def test_who_knows_the_answers_has_full_marks_by_text_and_by_ear(
    task: str, ear: Recogniser
) -> None:
    by_text, by_ear = [], []
    for number in range(SCENES):
        scene = make_scene(task, "test", number)
        reply = oracle(scene)
        assert reply.audio is not None
        by_text.append(score(scene, reply))
        by_ear.append(score(scene, Reply(ear.hear(reply.audio), reply.audio)))
    text, heard = (gather(marks)["score"].mean for marks in (by_text, by_ear))
    assert text >= LEAST.get(task, 1.0) and heard >= 0.95 * text


def test_whoever_always_counts_to_eleven_is_right_by_chance() -> None:
    scene = make_scene("repcount", "test", 0)
    marks = []
    for count in range(2, 21):
        ends = tuple(scene.seconds * (k + 1) / (count + 2) for k in range(count))
        always = Reply((Word("eleven", ends[-1], scene.seconds),))
        marks.append(score(replace(scene, facts={**scene.facts, "ends": ends}), always))
    found = gather(marks)
    assert found["score"].mean == pytest.approx(3 / 19)
    assert found["exact"].mean == pytest.approx(1 / 19)


def test_whoever_says_a_word_every_second_earns_nothing() -> None:
    for task in ("timespeak", "cuespeak"):
        scene = make_scene(task, "test", 0)
        word = scene.expected[0].word
        every = tuple(Word(word, t, t + 0.3) for t in np.arange(0.5, scene.seconds, 0.5))
        marks = score(scene, Reply(every))
        assert marks["utterances"] == 1.0 and marks["score"] == 0.0


def test_counts_are_spread_over_two_to_twenty() -> None:
    counts = [len(make_scene("repcount", "test", n).facts["ends"]) for n in range(16)]
    assert min(counts) <= 5 and max(counts) >= 17 and len(set(counts)) >= 8
