"""The bounded queues: order, limits, and what a held share does."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from microturn.runtime.image_input import PATCH
from microturn.runtime.output import Output
from microturn.runtime.queues import AudioQueue, IdQueue, OutputQueue, PatchQueue


def ramp(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.float32)


def patches(count: int, value: int) -> np.ndarray:
    return np.full((count, *PATCH), value, np.int16)


def test_audio_keeps_its_order_over_any_cuts() -> None:
    queue = AudioQueue(100)
    for cut in (0, 3, 3, 10, 50), (50, 51, 60):
        for a, b in pairwise(cut):
            assert queue.push(ramp(a, b)) == 0
    got = []
    while len(queue):
        got.append(queue.hold(7))
        queue.settle(True)
    assert np.array_equal(np.concatenate(got), ramp(0, 60))


def test_a_share_given_back_is_first_in_the_queue_again() -> None:
    queue = AudioQueue(100)
    queue.push(ramp(0, 20))
    assert np.array_equal(queue.hold(8), ramp(0, 8))
    queue.push(ramp(20, 30))
    queue.settle(False)
    assert np.array_equal(queue.hold(100), ramp(0, 30))


def test_drops_take_the_oldest_but_never_what_is_held() -> None:
    queue = AudioQueue(10)
    queue.push(ramp(0, 10))
    held = queue.hold(4)
    assert queue.push(ramp(10, 18)) == 4
    assert np.array_equal(held, ramp(0, 4))
    queue.settle(True)
    assert np.array_equal(queue.hold(100), ramp(8, 18))


def test_a_share_given_back_before_a_gap_is_part_of_the_gap() -> None:
    """So that what was dropped is always right before the next sample that is heard."""
    queue = AudioQueue(10)
    queue.push(ramp(0, 10))
    queue.hold(4)
    assert queue.push(ramp(10, 18)) == 4
    assert queue.settle(False) == 4
    assert np.array_equal(queue.hold(100), ramp(8, 18))
    queue.settle(True)
    queue.push(ramp(18, 20))
    queue.hold(1)
    assert queue.settle(False) == 0, "an old gap is forgotten"
    assert np.array_equal(queue.hold(100), ramp(18, 20))


def test_a_mark_survives_the_output_that_carried_it() -> None:
    queue = OutputQueue(2, drop_oldest=True)
    for tick, dropped_ms in enumerate((30.0, 0.0, 50.0, 7.0)):
        assert queue.put(output(tick, dropped_ms))
    first, second = queue.poll(), queue.poll()
    assert first is not None and second is not None
    assert (first.tick, first.dropped_outputs, first.dropped_ms) == (2, 2, 80.0)
    assert (second.tick, second.dropped_outputs, second.dropped_ms) == (3, 0, 7.0)


def output(tick: int, dropped_ms: float) -> Output:
    known = {"session_id": "s", "tick": tick, "dropped_ms": dropped_ms, "dropped_outputs": 0}
    values = {f.name: known.get(f.name, ()) for f in dataclasses.fields(Output)}
    return Output(**values)  # type: ignore[arg-type]


def test_context_is_taken_whole_or_not_at_all() -> None:
    queue = IdQueue(5)
    assert queue.push([1, 2, 3])
    assert not queue.push([4, 5, 6])
    assert len(queue) == 3
    assert queue.hold(2) == (1, 2)
    queue.settle(False)
    assert queue.hold(2) == (1, 2)
    queue.settle(True)
    assert queue.hold(9) == (3,)


def test_a_new_frame_replaces_only_one_that_has_not_started() -> None:
    queue = PatchQueue(10)
    assert queue.push(patches(4, 1), still=False)
    assert queue.push(patches(3, 2), still=False)
    assert (len(queue), queue.replaced) == (3, 1)
    assert queue.hold(2)[0, 0, 0, 0, 0] == 2
    queue.settle(True)
    assert queue.push(patches(4, 3), still=False)
    assert (len(queue), queue.replaced) == (5, 1)
    assert queue.hold(10)[:, 0, 0, 0, 0].tolist() == [2, 3, 3, 3, 3]


def test_still_images_are_never_replaced_and_a_full_queue_stays_as_it_was() -> None:
    queue = PatchQueue(6)
    assert queue.push(patches(4, 1), still=True)
    assert queue.push(patches(2, 2), still=False)
    assert not queue.push(patches(3, 3), still=False)
    assert queue.push(patches(1, 4), still=False)
    assert queue.hold(10)[:, 0, 0, 0, 0].tolist() == [1, 1, 1, 1, 4]
    queue.settle(False)
    assert len(queue) == 5


@pytest.mark.parametrize("committed", [True, False])
def test_settling_after_the_session_was_cleared_is_harmless(committed: bool) -> None:
    audio, ids, images = AudioQueue(10), IdQueue(10), PatchQueue(10)
    audio.push(ramp(0, 5))
    ids.push([1, 2])
    images.push(patches(2, 1), still=False)
    for queue in (audio, ids, images):
        queue.hold(2)
        queue.clear()
        queue.settle(committed)
