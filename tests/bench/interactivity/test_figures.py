"""Drawn figures and their motions."""

from __future__ import annotations

import numpy as np
import pytest

from microturn.bench.interactivity.figures import (
    MOTIONS,
    Figure,
    Performance,
    draw,
    made_up_motion,
    random_figure,
)

STILL = Figure(sway=0.0)


@pytest.mark.parametrize("name", MOTIONS)
def test_a_motion_is_seen_and_returns_to_rest(name: str) -> None:
    performance = Performance(MOTIONS[name], 1.0, (2.0, 3.5))
    rest = draw(STILL, None, 0.0)
    for time in (0.5, 1.0, 2.0, 3.5, 9.0):
        assert np.array_equal(draw(STILL, performance, time), rest)
    for middle in (1.5, 2.75):
        moved = np.abs(draw(STILL, performance, middle).astype(int) - rest).max(-1) > 40
        assert moved.sum() > 100


def test_motions_do_not_look_alike() -> None:
    far = {n: draw(STILL, Performance(m, 0.0, (1.0,)), 0.5).astype(int) for n, m in MOTIONS.items()}
    for a in far:
        for b in far:
            if a < b:
                assert (np.abs(far[a] - far[b]).max(-1) > 40).sum() > 60, f"{a} looks like {b}"


def test_repetitions_keep_their_own_lengths() -> None:
    performance = Performance(MOTIONS["squats"], 0.0, (1.0, 3.0))
    times = np.arange(0, 3, 0.01)
    amounts = [performance.amount(float(t)) for t in times]
    peaks = [
        times[i]
        for i in range(1, len(times) - 1)
        if amounts[i] >= amounts[i - 1] and amounts[i] > amounts[i + 1]
    ]
    assert peaks == pytest.approx([0.5, 2.0], abs=0.02)


def test_a_seed_fixes_figure_and_motion() -> None:
    def once(seed: int) -> tuple[Figure, dict[str, float]]:
        rng = np.random.default_rng(seed)
        return random_figure(rng), made_up_motion(rng)

    assert once(3) == once(3)
    assert once(3) != once(4)


def test_figures_stand_out() -> None:
    for seed in range(20):
        figure = random_figure(np.random.default_rng(seed))
        picture = draw(figure, None, 0.0, (80, 60))
        assert picture.shape == (60, 80, 3)
        difference = np.abs(picture.astype(int) - np.array(figure.background)).max(-1)
        assert (difference[: int(0.9 * 60)] > 50).sum() > 40
