"""Input under way, taken out of one session and put into another: resampler and queues."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from microturn.runtime.audio_input import Resampler
from microturn.runtime.image_input import PATCH
from microturn.runtime.queues import AudioQueue, Frame, IdQueue, PatchQueue


@pytest.mark.parametrize("rate", [48_000, 44_100, 8_000, 11_025])
@pytest.mark.parametrize("seconds", [0.01, 0.1, 2.0])
def test_a_resampler_goes_on_elsewhere(tools: SimpleNamespace, rate: int, seconds: float) -> None:
    audio, cut = tools.noise(int(rate * (seconds + 0.5))), int(rate * seconds)
    here = Resampler(16_000)
    for start in range(0, cut, 441):
        here.push(audio[start : min(start + 441, cut)], rate)
    saved = here.save()
    assert len(saved.recent) <= rate // 4 + 441
    there = Resampler(16_000)
    first = there.resume(saved)
    again = there.save()
    got = np.concatenate([first, there.push(audio[cut:], rate), there.flush()])
    want = np.concatenate([here.push(audio[cut:], rate), here.flush()])
    assert len(got) == len(want)
    assert np.abs(got - want).max() < 1e-6
    third = Resampler(16_000)
    twice = np.concatenate([third.resume(again), third.push(audio[cut:], rate), third.flush()])
    assert len(twice) == len(want) - len(first)


def test_without_resampling_nothing_is_kept_and_bits_are_equal() -> None:
    here, there = Resampler(16_000), Resampler(16_000)
    audio = np.arange(10, dtype=np.float32) / 16
    assert here.push(audio, 16_000).tobytes() == audio.tobytes()
    assert len(there.resume(here.save())) == 0
    assert there.push(audio, 16_000).tobytes() == audio.tobytes()
    assert len(Resampler(16_000).resume(Resampler(16_000).save())) == 0


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
