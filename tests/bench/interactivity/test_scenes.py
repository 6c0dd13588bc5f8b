"""Scenes: the same from the same seed, true to what they say, and apart by split."""

from __future__ import annotations

import numpy as np
import pytest

from microturn.bench.interactivity import splits
from microturn.bench.interactivity.acoustics import rms
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE
from microturn.bench.interactivity.splits import SPLITS, Split
from microturn.bench.interactivity.tasks import TASKS, make_scene
from microturn.bench.interactivity.vocabulary import CUES, REPLIES, SPOKEN

pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {task: make_scene(task, "test", 1) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_expected_can_be_said_and_lies_in_the_scene(
    scenes: dict[str, Scene], task: str
) -> None:
    scene = scenes[task]
    assert scene.audio.dtype == np.float32 and np.abs(scene.audio).max() <= 1
    at = [want.at for want in scene.expected]
    assert at == sorted(at) and all(0 < t < scene.seconds for t in at)
    assert {want.word for want in scene.expected} <= set(SPOKEN)
    assert scene.heard and all(0 <= w.start < w.end <= scene.seconds for w in scene.heard)
    assert bool(scene.expected) == (task != "idle")


def test_a_scene_depends_on_its_number_alone() -> None:
    first, again = (make_scene("cuespeak", "test", 5) for _ in range(2))
    assert np.array_equal(first.audio, again.audio) and first.expected == again.expected
    other = make_scene("cuespeak", "test", 6)
    assert first.heard != other.heard
    assert make_scene("cuespeak", "test", 5, seed=1).heard != first.heard


def test_a_condition_changes_the_sound_and_nothing_else() -> None:
    clean, noisy, room = (
        make_scene("timespeak", "test", 1, condition=name) for name in ("clean", "noise", "room")
    )
    assert clean.expected == noisy.expected == room.expected and clean.heard == room.heard
    quiet = slice(0, round(0.2 * SAMPLE_RATE))
    level = {s: rms(s.audio[quiet]) / rms(s.audio) for s in (clean, noisy)}
    assert level[noisy] > 3 * level[clean]
    with pytest.raises(ValueError, match="unknown condition 'rain'; known: clean"):
        make_scene("timespeak", "test", 1, condition="rain")


def test_splits_share_neither_voices_nor_pairs_nor_wordings() -> None:
    voices: dict[str, set[str]] = {}
    pairs: dict[str, set[tuple[str, str]]] = {}
    words: dict[str, set[str]] = {}
    for name in SPLITS:
        split, rng = Split(name), np.random.default_rng(0)
        voices[name] = {split.voice(rng).name.split("+")[1] for _ in range(300)}
        pairs[name] = {split.pair(rng, CUES, REPLIES) for _ in range(300)}
        words[name] = {split.wording(rng, "abcdef") for _ in range(50)}
    for kind in (voices, pairs, words):
        for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
            assert kind[one] and not kind[one] & kind[other]  # type: ignore[operator]
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        Split("dev")


def test_the_voice_has_every_word_that_is_expected() -> None:
    from microturn.bench.training.voice import WORDS

    assert set(SPOKEN) <= set(WORDS)


def test_every_voice_is_there() -> None:
    for variants in splits._VARIANTS.values():
        for variant in variants.split():
            splits.spoken("one", splits.Voice(f"en-us+{variant}"))


def test_counts_are_spread_and_fast_repetitions_are_counted_in_steps() -> None:
    from microturn.bench.interactivity.tasks.repcount import WORD_SECONDS, counted

    fast = counted(tuple(0.5 * k for k in range(1, 11)))
    assert fast[-1].word == "ten" and 4 < len(fast) < 10
    gaps = np.diff([want.at for want in fast])
    assert (gaps >= WORD_SECONDS - 1e-9).all()
    slow = counted((2.0, 4.0, 6.0))
    assert [want.word for want in slow] == ["one", "two", "three"]


def test_films_show_what_happens(scenes: dict[str, Scene]) -> None:
    scene = scenes["repcount"]
    assert scene.film is not None
    start, ends = scene.facts["start"], scene.facts["ends"]
    far = scene.film.picture((start + ends[0]) / 2).astype(int)
    assert np.abs(far - scene.film.picture(ends[0])).mean() > 1
    assert len(scene.film.pictures(2.05)) == 20


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(ValueError, match="unknown task 'sing'; known: timespeak"):
        make_scene("sing", "test", 0)
