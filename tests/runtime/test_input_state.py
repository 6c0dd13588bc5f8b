"""Input under way, taken out of one session and put into another: resampler and queues."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soxr

from microturn.runtime.audio_input import Resampler, ResamplerState
from microturn.runtime.image_input import PATCH
from microturn.runtime.queues import AudioQueue, Frame, IdQueue, PatchQueue


@pytest.mark.parametrize("rate", [48_000, 44_100, 8_000, 11_025, 22_050.5])
def test_a_resampler_goes_on_elsewhere_bit_for_bit(tools: SimpleNamespace, rate: float) -> None:
    """Handed over again and again, and cut in another way: no bit differs."""
    audio = tools.noise(int(rate * 4.3))
    here, there = Resampler(16_000), Resampler(16_000)
    want = [here.push(audio[at : at + 4_410], rate) for at in range(0, len(audio), 4_410)]
    rng, got, at = np.random.default_rng(1), [], 0
    while at < len(audio):
        step = int(rng.integers(1, 5_000))
        got.append(there.push(audio[at : at + step], rate))
        at += step
        saved, there = there.save(), Resampler(16_000)
        assert len(saved.recent) <= 5 * rate + 16_384
        there.resume(saved)
    whole = np.concatenate([*want, here.flush()])
    assert np.concatenate([*got, there.flush()]).tobytes() == whole.tobytes()
    assert abs(len(whole) - len(audio) * 16_000 / rate) < 2


@pytest.mark.parametrize("rate", [48_000, 44_100, 11_025])
def test_filters_that_take_over_are_not_heard(tools: SimpleNamespace, rate: int) -> None:
    audio = tools.noise(rate * 6)
    made = Resampler(16_000)
    got = np.concatenate([made.push(audio, rate), made.flush()])
    want = soxr.resample(audio, rate, 16_000, quality="HQ")
    assert len(got) == len(want)
    assert np.abs(got - want).max() < 2e-6


def test_what_a_filter_remembers_counts(tools: SimpleNamespace) -> None:
    """The control: the last sample before a hand-over is heard after it."""
    audio, made = tools.noise(9_600), []
    for recent in (audio, np.append(audio[:-1], np.float32(0.5))):
        there = Resampler(16_000)
        there.resume(ResamplerState(48_000, recent, 3_000))
        made.append(there.push(audio, 48_000))
    assert made[0].tobytes() != made[1].tobytes()


def test_without_resampling_nothing_is_kept_and_bits_are_equal() -> None:
    here, there = Resampler(16_000), Resampler(16_000)
    audio = np.arange(10, dtype=np.float32) / 16
    assert here.push(audio, 16_000).tobytes() == audio.tobytes()
    assert not len(here.save().recent)
    there.resume(here.save())
    assert there.push(audio, 16_000).tobytes() == audio.tobytes()
    there.resume(Resampler(16_000).save())
    assert there.save().rate is None


def test_queues_say_what_waits_and_take_it_elsewhere() -> None:
    audio, ids = AudioQueue(10), IdQueue(9)
    audio.push(np.arange(4, dtype=np.float32))
    audio.push(np.arange(4, 7, dtype=np.float32))
    ids.push([4, 5])
    assert (audio.waiting().tolist(), ids.waiting()) == ([*range(7)], (4, 5))
    assert (len(audio), len(ids)) == (7, 2)

    def image(value: int) -> np.ndarray:
        return np.full((4, *PATCH), value, np.int16)

    here, there = PatchQueue(20), PatchQueue(20)
    here.push(image(1), still=True)
    here.push(image(2), still=False)
    here.hold(6)
    here.settle(True)
    assert [(len(f.patches), f.still, f.started) for f in here.waiting()] == [(2, False, True)]
    there.refill(here.waiting())
    there.refill([Frame(image(3), False)])
    assert there.push(image(4), still=False)
    assert there.replaced == 1, "only the one that was not begun"
    assert there.hold(9)[:, 0, 0, 0, 0].tolist() == [2, 2, 4, 4, 4, 4]
