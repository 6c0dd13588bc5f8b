"""The listener that scores speech by its sound."""

from __future__ import annotations

import numpy as np
import pytest

from microturn.bench.interactivity.speech import SAMPLE_RATE, Voice, say_words

pytest.importorskip("espeakng_loader")
pytest.importorskip("pocketsphinx")

from microturn.bench.interactivity.recogniser import Recogniser, sounds

PHRASES = (
    *("four", "start", "banana", "squat", "breathe", "seventeen", "yes", "no", "water", "red"),
    *("purple", "goodbye", "camera", "two", "stop talking"),
)
SAID = ["banana", "four", "stop talking", "squat", "seventeen"]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(PHRASES)


def test_words_are_heard_where_they_are_said(recogniser: Recogniser) -> None:
    spoken = say_words(SAID, Voice("en-us", rate=150), [0.4, 0.3, 0.5, 0.2, 0.1])
    heard = recogniser.hear(0.3 * spoken.audio)
    assert [word.text for word in heard] == SAID
    for found, word in zip(heard, spoken.words, strict=True):
        assert found.start == pytest.approx(word.start, abs=0.06)
        assert found.end == pytest.approx(word.end, abs=0.1)
    assert recogniser.hear(0.3 * spoken.audio) == heard, "it remembers what it heard before"


def test_speech_played_backwards_is_not_understood(recogniser: Recogniser) -> None:
    spoken = say_words(SAID, Voice("en-us", rate=150), [0.4] * len(SAID))
    heard = recogniser.hear(spoken.audio[::-1].copy())
    assert sum(h.text == said for h, said in zip(heard[::-1], SAID, strict=False)) <= 2


def test_silence_is_nothing(recogniser: Recogniser) -> None:
    assert recogniser.hear(np.zeros(SAMPLE_RATE, np.float32)) == ()
    assert recogniser.hear(np.zeros(0, np.float32)) == ()
    assert sounds(np.zeros(SAMPLE_RATE // 200, np.float32)) == []


def test_a_stop_consonant_parts_no_word() -> None:
    audio = np.zeros(SAMPLE_RATE, np.float32)
    for start, end in ((0.1, 0.2), (0.3, 0.4), (0.6, 0.7), (0.9, 0.95)):
        audio[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = 0.1
    found = [(round(a / SAMPLE_RATE, 2), round(b / SAMPLE_RATE, 2)) for a, b in sounds(audio)]
    assert found == [(0.1, 0.4), (0.6, 0.7)]


@pytest.mark.parametrize(("phrases", "words"), [((), "at least one"), (("yes", "qwxz"), "qwxz")])
def test_what_it_cannot_listen_for_is_named(phrases: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recogniser(phrases)
