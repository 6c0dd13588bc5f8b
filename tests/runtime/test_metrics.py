"""Counts, bounds and their two faces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from microturn.runtime import Runtime, RuntimeFull
from microturn.runtime.bounds import upper95
from microturn.runtime.metrics import Metrics, TickTiming


@pytest.mark.parametrize(
    ("events", "trials", "bound"),
    [
        (0, 1, 0.95),
        (0, 3_000, 1 - 0.05 ** (1 / 3_000)),
        (0, 10**9, 2.9957e-9),
        (1, 10, 0.394163),
        (5, 100, 0.102253),
        (50, 100, 0.586374),
        (10, 10, 1.0),
    ],
)
def test_the_upper_bound_is_clopper_and_pearsons(events: int, trials: int, bound: float) -> None:
    """Values of the beta quantile, from tables."""
    assert upper95(events, trials) == pytest.approx(bound, rel=1e-4)


def test_the_upper_bound_refuses_what_is_no_rate() -> None:
    for events, trials in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="make no rate"):
            upper95(events, trials)


def test_percentiles_are_in_ms_and_close() -> None:
    metrics = Metrics()
    for ms in range(1, 1_001):
        timing = TickTiming(0, 0, 0, ms * 1_000_000, 0, (990 - ms) * 1_000_000)
        metrics.tick(timing, sessions=3)
    summary = metrics.summary()
    assert summary["step_ms"]["p50"] == pytest.approx(500, rel=2e-3)
    assert summary["step_ms"]["p999"] == pytest.approx(999, rel=2e-3)
    assert summary["step_ms"]["max"] == pytest.approx(1_000, rel=2e-3)
    assert (summary["misses"], summary["slack_ms_min"]) == (10, -10.0)
    assert (summary["session_ticks"], summary["late_session_ticks"]) == (3_000, 30)


def test_prometheus_sees_the_same_counts(make_runtime: Callable[..., Runtime]) -> None:
    first, second = make_runtime(max_sessions=1), make_runtime()
    session = first.open()
    with pytest.raises(RuntimeFull):
        first.open()
    first.tick()
    first.tick()
    text = first.metrics.prometheus().decode()
    for line in (
        "microturn_ticks_total 2.0",
        "microturn_missed_deadlines_total 0.0",
        "microturn_sessions 1.0",
        "microturn_sessions_refused_total 1.0",
        'microturn_tick_seconds_count{phase="step"} 2.0',
    ):
        assert line in text.splitlines()
    session.close()
    text = first.metrics.prometheus().decode()
    assert 'microturn_sessions_closed_total{reason="closed"} 1.0' in text
    assert "microturn_sessions 0.0" in text
    assert "microturn_inserted_silence_seconds_total 0.2" in text
    assert "microturn_ticks_total 0.0" in second.metrics.prometheus().decode()
