"""Speech and rooms."""

from __future__ import annotations

import time

import numpy as np
import pytest

from microturn.bench.interactivity.acoustics import Room, at_level, in_room, mix, noise, rms
from microturn.bench.interactivity.speech import SAMPLE_RATE, Voice, say, say_words

pytest.importorskip("espeakng_loader")


def test_words_are_timed_in_order_and_inside() -> None:
    spoken = say("remind me to breathe every four seconds", Voice("en-us"))
    assert " ".join(w.text for w in spoken.words) == "remind me to breathe every four seconds"
    times = [t for w in spoken.words for t in (w.start, w.end)]
    assert times == sorted(times)
    assert times[0] == 0 and times[-1] <= spoken.seconds + 1e-3
    assert 1.5 < spoken.seconds < 4


def test_words_that_run_together_are_still_words() -> None:
    text = "the children were playing in the yard all of the time"
    words = say(text, Voice("en-us")).words
    assert " ".join(word.text for word in words) == text
    assert all(word.end > word.start for word in words)


def test_a_word_sounds_where_it_is_said_to() -> None:
    spoken = say_words(["bell", "stop"], Voice("en-us+f3"), [0.5, 0.25])

    def level(start: float, seconds: float) -> float:
        at = round(start * SAMPLE_RATE)
        return rms(spoken.audio[at : at + round(seconds * SAMPLE_RATE)])

    assert level(spoken.words[0].end + 0.02, 0.4) < 1e-3 < level(spoken.words[1].start, 0.2)
    assert spoken.words[1].start == pytest.approx(spoken.words[0].end + 0.5, abs=1e-3)


def test_voices_differ_and_repeat_themselves() -> None:
    low, high = (say("hello", Voice("en-us+m3", pitch=p)).audio for p in (10, 90))
    text = "the weather has been strange all week"
    trembling = say(text, Voice("en-us+f5")).audio  # by random numbers that the time seeds
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.05)
    say("something else in between", Voice("en-us+f2"))
    again = say("hello", Voice("en-us+m3", pitch=10)).audio
    assert np.array_equal(low, again)
    assert np.array_equal(trembling, say(text, Voice("en-us+f5")).audio)
    assert low.shape != high.shape or not np.allclose(low, high)


@pytest.mark.parametrize(
    ("text", "voice"), [("hello", "no-such-voice"), ("...", "en-us"), ("é", "en-us")]
)
def test_what_cannot_be_said_is_refused(text: str, voice: str) -> None:
    with pytest.raises(ValueError, match=r"no-such-voice|ASCII words"):
        say(text, Voice(voice))


def test_levels_noise_and_rooms() -> None:
    rng = np.random.default_rng(0)
    speech = say("count the squats please", Voice("en-us")).audio
    assert rms(at_level(np.ones(1000, np.float32), -20)) == pytest.approx(0.1, rel=1e-3)
    clean = in_room(speech, Room(), rng)
    noisy = in_room(speech, Room(noise_db=10), rng)
    added = noisy - clean
    loud = clean[np.abs(clean) > 1e-3]
    assert 20 * np.log10(rms(loud) / rms(added)) == pytest.approx(10, abs=1.5)
    wet = in_room(speech, Room(decay=0.4), rng)
    assert len(wet) == len(speech) and not np.allclose(wet, clean)
    assert rms(noise(8000, rng)) == pytest.approx(1, rel=1e-3)


def test_mixing_keeps_times_and_cuts_what_stands_outside() -> None:
    one = np.ones(SAMPLE_RATE, np.float32)
    mixed = mix(2 * SAMPLE_RATE, (0.5, one), (1.5, one), (-0.75, one))
    steps = mixed[:: SAMPLE_RATE // 4]
    assert steps.tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
