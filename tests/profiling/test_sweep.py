"""What admission foretold over a sweep, on a machine whose cost law is known, under its clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import ceil
from typing import Any

import numpy as np
import pytest

from microturn.bench.chaos.echo import EchoEngine, EchoFamily
from microturn.profiling import findings
from microturn.profiling.capture import counts
from microturn.profiling.crowd import Crowd
from microturn.profiling.sweep import Levels, sweep
from microturn.runtime import Runtime, VirtualClock
from microturn.runtime.lateness import COUNT_ONLY

MS = 1_000_000
COUNTS = (1, 2, 3, 6)

Law = Callable[[int], int]


def noisy(seed: int, tile: int) -> Law:
    """Tiles of so many sessions, skewed noise, and 1 tick of 50 up to 15 % late."""
    draw = np.random.default_rng(seed)

    def takes(sessions: int) -> int:
        noise = draw.gamma(1, 0.02) + (0.15 * draw.random() if draw.random() < 0.02 else 0.0)
        return int(MS * (15 + 2 * tile * ceil(sessions / tile) + 2 * sessions) * (1 + noise))

    return takes


class Ageless(EchoEngine):
    """Old sessions cost what young ones do."""

    def age_slot(self, slot: int) -> None: ...


def swept(takes: Law, ticks: int, numbers: Sequence[int] = COUNTS) -> Levels:
    clock = VirtualClock()
    family: Any = EchoFamily()
    with Runtime(
        model=family,
        engine=Ageless(numbers[-1], clock, takes),
        clock=clock,
        max_sessions=numbers[-1],
        lateness=COUNT_ONLY,
    ) as runtime:
        runtime.foresight.measure(numbers[-1])
        return sweep(runtime, Crowd(runtime, 0), numbers, ticks)


def test_predictions_hold_at_every_number_of_a_sweep() -> None:
    """Of ticks held out; p50 also before a number was measured, as admission asks."""
    levels = swept(noisy(1, tile=2), 120)
    assert [level["sessions"] for level in levels] == list(COUNTS)
    fitted, before = (findings.told({"levels": levels}, name) for name in ("fitted", "predicted"))
    assert [t.sessions for t in fitted] == [t.sessions for t in before] == list(COUNTS)
    assert all(t.holds for t in fitted), fitted
    assert all(abs(t.off) <= findings.NEAR for t in before), before
    said = findings.predictions({"levels": levels})
    assert len(said) == 2 and "hold at 4 of 4" in said[0]


def test_a_jump_that_nobody_could_foresee_is_learned_and_told_apart() -> None:
    """Of a fifth of the tick, at the sixth session: warm-up measured 4 and 6."""
    levels = swept(lambda n: MS * (60 + 4 * n + 25 * (n > 4)), 24, (1, 4, 5, 6))
    fitted, before = (findings.told({"levels": levels}, name) for name in ("fitted", "predicted"))
    assert all(t.holds for t in fitted)
    assert [t.sessions for t in before if not t.holds] == [5]


@pytest.mark.parametrize(
    "extra", [lambda n: 0.15 * (n % 2), lambda n: 2.0 * (n % 40 == 1)], ids=["p50", "p99"]
)
def test_held_out_ticks_that_differ_from_those_fitted_to_are_seen(
    extra: Callable[[int], float],
) -> None:
    """All of them 15 % longer, or 1 in 20 three times as long; on the even ones or the odd ones."""
    held = []
    for parity in (0, 1):
        steps = count(parity)

        def takes(sessions: int, steps: Iterator[int] = steps) -> int:
            return int(MS * (20 + 4 * sessions) * (1 + extra(next(steps))))

        found = findings.told({"levels": swept(takes, 24, (1, 2))}, "fitted")
        held.append(all(t.holds for t in found))
    assert False in held


def test_numbers_of_sessions_are_read() -> None:
    assert counts("2") == (2,) and counts("3,1, 2,3") == (1, 2, 3)
    for text in ("", "0", "1,x", "-1"):
        with pytest.raises(ValueError, match="from 1 on, such as 2 or 1,2,3, got"):
            counts(text)
