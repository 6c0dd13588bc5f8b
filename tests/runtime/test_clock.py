"""Clocks and the grid."""

from __future__ import annotations

import threading
import time

import pytest

from microturn.runtime.clock import FastClock, Grid, RealClock, VirtualClock


@pytest.mark.parametrize(
    ("tick", "now", "follows"),
    [(0, 0, 1), (3, 399, 4), (3, 401, 4), (3, 499, 4), (3, 500, 5), (3, 501, 6), (3, 751, 8)],
)
def test_a_tick_may_start_late_but_not_by_a_period(tick: int, now: int, follows: int) -> None:
    for t0 in (0, 7):
        assert Grid(t0, 100).after(tick, now + t0) == follows


def test_due_times_do_not_drift() -> None:
    grid = Grid(5, 100_000_000)
    assert grid.due(1_000_000) == 5 + 100_000_000_000_000
    assert grid.deadline(3) == grid.due(4)


def test_a_virtual_clock_moves_only_when_told() -> None:
    clock = VirtualClock()
    assert clock.wait_until(50) and clock.now() == 50
    assert clock.wait_until(20) and clock.now() == 50
    clock.advance(5)
    assert clock.now() == 55
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_a_real_clock_waits_until_due_and_not_much_longer() -> None:
    clock = RealClock()
    late = []
    for _ in range(5):
        due = clock.now() + 8_000_000
        assert clock.wait_until(due, threading.Event())
        late.append(clock.now() - due)
    assert min(late) >= 0
    assert min(late) < 3_000_000


def test_stop_ends_a_wait() -> None:
    stop = threading.Event()
    threading.Timer(0.02, stop.set).start()
    began = time.monotonic()
    assert not RealClock().wait_until(RealClock().now() + 10_000_000_000, stop)
    assert time.monotonic() - began < 5


def test_a_fast_clock_waits_in_no_time_and_counts_what_passes() -> None:
    clock = FastClock()
    due = clock.now() + 3_600_000_000_000
    began = time.monotonic()
    assert clock.wait_until(due)
    assert due <= clock.now() < due + 1_000_000_000
    assert time.monotonic() - began < 1
    before = clock.now()
    time.sleep(0.01)
    assert clock.now() - before >= 10_000_000
