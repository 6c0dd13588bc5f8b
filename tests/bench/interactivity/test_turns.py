"""What a network in turn format is trained on is what the harness feeds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from microturn.bench.interactivity import harness
from microturn.bench.interactivity.harness import Rules
from microturn.bench.interactivity.lanes import Moment
from microturn.bench.interactivity.scene import Reel, Scene
from microturn.bench.interactivity.splits import Split
from microturn.bench.interactivity.tasks import TASKS, make_scene
from microturn.bench.interactivity.turns import Spoken, in_turns, turn_makers
from microturn.bench.interactivity.vocabulary import NUMBERS
from microturn.bench.training.lexicon import Lexicon
from microturn.bench.training.script import Script, script
from microturn.model.interaction.load import load_family
from microturn.runtime.image_input import to_patches
from microturn.runtime.output import TextEvent

pytest.importorskip("espeakng_loader")
pytest.importorskip("webrtcvad")


@pytest.fixture(scope="module")
def family() -> Any:
    return load_family("interaction-tiny")


@pytest.fixture(scope="module")
def lexicon(family: Any) -> Lexicon:
    return Lexicon(family.tokenizer, family.listen_id)


def obey(made: Script, scene: Scene, family: Any, rules: Rules) -> list[Moment]:
    """What the harness feeds a network that writes, slot by slot, what `made` says."""
    life, shape, met = harness.live(scene, family.shape, rules), family.shape, list[Moment]()
    try:
        moment = next(life)
        while True:
            tick = len(met)
            met.append(moment)
            written = made.text[tick * shape.frames : (tick + 1) * shape.frames]
            pieces = [(j, family.tokenizer.piece(int(token))) for j, token in enumerate(written)]
            words = tuple(TextEvent(100 * tick + 50 * j, 0, piece) for j, piece in pieces if piece)
            silence = np.zeros(shape.output_samples, np.float32)
            moment = life.send(Spoken(100 * tick, silence, words))
    except StopIteration:
        return met


@pytest.mark.parametrize("task", ["pause", "cuespeak", "proactive"])
def test_training_rows_are_what_the_harness_feeds(task: str, family: Any, lexicon: Lexicon) -> None:
    scene, rules = make_scene(task, "train", 1), Rules(silence_ms=300, aggressiveness=3)
    turns = in_turns(scene, family.shape, rules)
    made = script(turns, lexicon)
    met = obey(made, scene, family, rules)
    assert len(met) == made.ticks
    assert np.array_equal(np.concatenate([moment.audio for moment in met]), turns.audio)
    if scene.film is None:
        assert made.pictures is None and all(moment.picture is None for moment in met)
        return
    assert made.pictures is not None
    pictures = [moment.picture for moment in met]
    assert np.array_equal(np.stack([p for p in pictures if p is not None]), made.pictures)
    assert to_patches(made.pictures[0], 1, None).shape[0] == 1


def test_another_answer_is_fed_otherwise(family: Any, lexicon: Lexicon) -> None:
    scene, rules = make_scene("pause", "train", 1), Rules()
    made = script(in_turns(scene, family.shape, rules), lexicon)
    made.text[:] = lexicon.listen_id
    assert len(obey(made, scene, family, rules)) != made.ticks


def test_plain_questions_are_answered_at_once_and_talk_is_not(family: Any) -> None:
    scene = next(
        s for s in (make_scene("latency", "train", n) for n in range(9)) if s.facts["idle"]
    )
    turns = in_turns(scene, family.shape, Rules())
    assert [want.word for want in turns.expected] == [want.word for want in scene.expected]
    spoken = [word.end for word in turns.heard]
    for want in turns.expected:
        before = max(end for end in spoken if end < want.at)
        assert want.at - before == pytest.approx(0.55, abs=0.2)  # the silence, a tick, a slot
    idle = in_turns(make_scene("idle", "train", 0), family.shape, Rules())
    assert idle.expected == () and len(idle.heard) > 10


def test_counting_stops_for_good_and_goes_on_after_a_pause(family: Any) -> None:
    for number in range(3):
        scene = make_scene("interrupt", "train", number)
        said = [want.word for want in in_turns(scene, family.shape, Rules()).expected]
        assert said == list(NUMBERS[1 : len(said) + 1]) and 3 < len(said) < 20
        paused = in_turns(make_scene("pause", "train", number), family.shape, Rules())
        said = [want.word for want in paused.expected]
        assert said == list(NUMBERS[1 : len(said) + 1])
        gaps = np.diff([want.at for want in paused.expected])
        assert (gaps > 1).sum() == 1, 'the turns of "wait" and "go on" lie between'


def test_what_is_not_known_when_a_turn_ends_is_not_said(family: Any) -> None:
    for task in ("repcount", "charades", "proactive"):
        turns = in_turns(make_scene(task, "train", 0), family.shape, Rules())
        assert turns.expected == () and isinstance(turns.film, Reel)
    asked = next(
        s for s in (make_scene("timespeak", "train", n) for n in range(9)) if len(s.expected) > 1
    )
    (once,) = in_turns(asked, family.shape, Rules()).expected
    assert once.word == asked.expected[0].word


def test_every_task_can_be_made_in_turns(family: Any) -> None:
    makers = turn_makers(family.shape)
    assert set(makers) == set(TASKS)
    first, again = (
        makers["cuespeak"](Split("train"), np.random.default_rng(4), "a", "noise") for _ in range(2)
    )
    assert np.array_equal(first.audio, again.audio) and first.expected == again.expected
    assert len(first.audio) % family.shape.input_samples == 0
