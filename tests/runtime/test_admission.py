"""Predictions on machines that are known exactly, and who is let in by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from microturn.runtime.admission import (
    AGES,
    ENOUGH,
    HORIZON_NS,
    Admission,
    Ages,
    Load,
    TickPredictor,
    _isotonic,
)
from microturn.runtime.bounds import quantile_rank
from microturn.runtime.plan import RowPlan, TickPlan

MS = 1_000_000


class Machine:
    """Ticks in ns: tiles of 8 rows, so nothing that a straight line says exactly."""

    def __init__(self, seed: int = 0, base: float = 15.0, per_tile: float = 6.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.base, self.per_tile = base, per_tile

    def middle(self, load: Load) -> float:
        tiles = ceil(load.rows / 8)
        keys = 0.25 * load.sessions * load.age
        return MS * (self.base + self.per_tile * tiles + 2.0 * load.sessions + keys)

    def tick(self, load: Load) -> int:
        hiccup = 0.3 * self.rng.random() if self.rng.random() < 0.03 else 0.0
        return int(self.middle(load) * (1 + 0.02 * abs(self.rng.normal()) + hiccup))


class Time:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def ordinary(sessions: int, age: int = AGES) -> Load:
    return Load(sessions, 3 * sessions, age)


def warmed(machine: Machine, time: Time, most: int = 16) -> TickPredictor:
    """As a runtime's warm-up leaves it: 1, 2, 4 ... sessions, young windows, a full append pass."""
    predictor = TickPredictor(now=time)
    loads = [ordinary(1 << k) for k in range(most.bit_length())]
    for load in (*loads, ordinary(1, 1), Load(most, 3 * most + 61)):
        predictor.probe(load, [machine.tick(load) for _ in range(6)])
    return predictor


def run(predictor: TickPredictor, machine: Machine, time: Time, load: Load, ticks: int) -> None:
    for _ in range(ticks):
        time.ns += 100 * MS
        predictor.observe(load, machine.tick(load))


@pytest.mark.parametrize("seed", range(5))
def test_p50_is_within_a_tenth_at_every_number_of_sessions(seed: int) -> None:
    """From warm-up alone, between what it measured; and where ticks were seen, nearer still."""
    machine, time = Machine(seed), Time()
    predictor = warmed(machine, time)
    for sessions in range(1, 17):
        at = ordinary(sessions)
        assert predictor.p50(at) == pytest.approx(machine.middle(at), rel=0.1)
    for sessions in (3, 7, 11):
        run(predictor, machine, time, ordinary(sessions), 400)
    for sessions in range(1, 20):
        at = ordinary(sessions)
        near = 0.04 if sessions in (3, 7, 11) else 0.1
        assert predictor.p50(at) == pytest.approx(machine.middle(at), rel=near)


@pytest.mark.parametrize("seed", range(5))
def test_p99_is_never_below_measured_over_a_sweep(seed: int) -> None:
    """Neither below that of the ticks it was made of, nor below that of all ticks to come."""
    machine, time = Machine(seed), Time()
    predictor = warmed(machine, time)
    sweep = {n: [machine.tick(ordinary(n)) for _ in range(500)] for n in range(1, 13)}
    for sessions, ticks in sweep.items():
        for ns in ticks:
            time.ns += 100 * MS
            predictor.observe(ordinary(sessions), ns)
    for sessions, ticks in sweep.items():
        p99, p50 = predictor.p99(ordinary(sessions)), predictor.p50(ordinary(sessions))
        assert p99 is not None and p50 is not None
        to_come = np.percentile([machine.tick(ordinary(sessions)) for _ in range(4000)], 99)
        assert max(np.percentile(ticks, 99), to_come) <= p99 <= 1.2 * to_come and p50 < p99


def test_one_more_session_is_foreseen_before_it_comes() -> None:
    """p99 at N + 1, of which nothing was measured, from ticks at N; windows half full."""
    machine, time = Machine(3), Time()
    predictor = warmed(machine, time, most=4)
    for sessions in range(1, 9):
        run(predictor, machine, time, ordinary(sessions, age=8), 400)
        more = ordinary(sessions + 1)
        measured = np.percentile([machine.tick(more) for _ in range(1000)], 99)
        assert measured <= (predictor.p99(more) or 0) <= 1.35 * measured


@settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.lists(
        st.tuples(
            st.integers(1, 12), st.integers(1, 200), st.integers(0, AGES), st.integers(1, 90)
        ),
        min_size=1,
        max_size=60,
    )
)
def test_more_work_is_never_predicted_to_be_shorter(
    ticks: list[tuple[int, int, int, int]],
) -> None:
    """Whatever was measured, contradictions included."""
    predictor = TickPredictor(now=Time())
    for sessions, rows, age, ms in ticks:
        predictor.observe(Load(sessions, rows, age), ms * MS)
    for quantile in (predictor.p50, predictor.p99):
        for rows in (30, 90):
            series = [quantile(Load(n, rows)) or 0 for n in range(1, 16)]
            assert all(a <= b * (1 + 1e-9) for a, b in pairwise(series))
        by_age = [quantile(Load(4, 30, age)) or 0 for age in range(AGES + 1)]
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(by_age))


def test_a_hiccup_in_warm_up_and_outliers_move_nothing() -> None:
    machine, time = Machine(1), Time()
    predictor = warmed(machine, time, most=4)
    before = predictor.p50(ordinary(3))
    predictor.probe(ordinary(2), [*(machine.tick(ordinary(2)) for _ in range(6)), 3_000 * MS])
    run(predictor, machine, time, ordinary(2), 100)
    for _ in range(5):
        predictor.observe(ordinary(2), 900 * MS)
    assert predictor.p50(ordinary(3)) == pytest.approx(before, rel=0.05)
    p99 = predictor.p99(ordinary(2))
    assert p99 is not None and p99 >= 900 * MS * 0.99, "what was measured counts"


def test_what_was_long_ago_is_forgotten() -> None:
    machine, time = Machine(2), Time()
    predictor = warmed(machine, time, most=4)
    calm = predictor.p99(ordinary(2))
    slow = Machine(2, base=80.0)
    run(predictor, slow, time, ordinary(2), 2 * ENOUGH)
    assert (predictor.p99(ordinary(2)) or 0) > 1.5 * (calm or 0)
    time.ns += HORIZON_NS + 100 * MS * 2 * ENOUGH
    assert predictor.p99(ordinary(2)) == pytest.approx(calm)


def test_nothing_measured_predicts_nothing() -> None:
    predictor = TickPredictor(now=Time())
    assert predictor.p50(ordinary(1)) is None and predictor.p99(ordinary(1)) is None
    assert predictor.p99(ordinary(1), wait=False) is None
    assert policy(predictor).refusal(50, 0) is None


def test_who_cannot_wait_gets_the_last_answer() -> None:
    machine, time = Machine(2), Time()
    predictor = warmed(machine, time, most=4)
    before = predictor.p99(ordinary(2))
    run(predictor, Machine(2, base=80.0), time, ordinary(2), 2 * ENOUGH)
    assert predictor.p99(ordinary(2), wait=False) == before
    predictor.refresh()
    assert (predictor.p99(ordinary(2), wait=False) or 0) > (before or 0)
    run(predictor, Machine(2, base=200.0), time, ordinary(2), 8)
    before = predictor.p99(ordinary(2), wait=False)
    predictor.refresh()
    assert predictor.p99(ordinary(2), wait=False) == before, "that was done just now"
    assert (predictor.p99(ordinary(2)) or 0) > (before or 0)


def test_the_nearest_rising_series() -> None:
    assert _isotonic([1, 3, 2, 4], [1, 1, 1, 1]) == [1, 2.5, 2.5, 4]
    assert _isotonic([3, 1], [3, 1]) == [2.5, 2.5]
    assert _isotonic([5, 4, 3], [1, 1, 1]) == [4, 4, 4]


def test_the_rank_that_bounds_a_quantile() -> None:
    """Known of tolerance limits: 299 samples for the 99th percentile, 59 for the 95th."""
    assert [quantile_rank(n, 0.99, 0.95) for n in (298, 299, 473)] == [None, 299, 472]
    assert [quantile_rank(n, 0.95, 0.95) for n in (58, 59)] == [None, 59]
    assert [quantile_rank(n, 0.99, 0.99) for n in (458, 459)] == [None, 459]
    rng = np.random.default_rng(0)
    rank = quantile_rank(1000, 0.99, 0.95)
    assert rank is not None
    held = sum(np.sort(rng.random(1000))[rank - 1] >= 0.99 for _ in range(1000))
    assert 930 <= held < 1000
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile_rank(10, 1.0, 0.95)


def policy(predictor: TickPredictor, free_bytes: Callable[[], int] = lambda: 1 << 40) -> Admission:
    return Admission(predictor, 100 * MS, 5 * MS, 3, 64, 40_000_000, free_bytes)


def test_the_last_that_fits_is_admitted_and_the_next_refused() -> None:
    machine, time = Machine(0), Time()
    admission = policy(warmed(machine, time))
    most = admission.most(64)
    assert 2 <= most < 16
    p99 = [admission.predictor.p99(ordinary(n)) or 0 for n in (most, most + 1)]
    assert p99[0] <= 95 * MS < p99[1]
    assert admission.refusal(most - 1, 0) is None
    refused = admission.refusal(most, 0)
    assert refused is not None and refused.reason == "time"
    assert f"99 of 100 ticks with {most + 1} sessions" in refused.detail
    assert "more than a tick of 100 ms has" in refused.detail
    assert replace(admission, margin_ns=60 * MS).most(64) < most
    assert replace(admission, period_ns=10 * MS).most(64) == 0
    assert admission.most(2) == 2


def test_the_first_is_let_in_unless_half_of_its_ticks_are_late() -> None:
    time = Time()
    for base, late in ((60.0, False), (95.0, True)):
        machine = Machine(0, base=base)
        admission = policy(warmed(machine, time, most=1))
        for _ in range(30):
            admission.predictor.observe(ordinary(1), 150 * MS)
        run(admission.predictor, machine, time, ordinary(1), 100)
        assert (admission.predictor.p99(ordinary(1)) or 0) > 100 * MS
        refused = admission.refusal(0, 0)
        assert (refused is not None) == late
        assert admission.refusal(1, 0) is not None
    assert refused is not None and refused.detail.startswith("half of the ticks with 1 sessions")
    welcoming = replace(admission, welcome=True)
    assert welcoming.refusal(0, 0) is None and welcoming.refusal(1, 0) is not None


def test_context_to_read_counts_as_far_as_a_tick_takes_it() -> None:
    machine, time = Machine(0), Time()
    admission = policy(warmed(machine, time))
    assert admission.load(4, 10) == Load(4, 9 + 13)
    assert admission.load(4, 10_000) == Load(4, 9 + 64)
    most = admission.most(64)
    assert admission.refusal(most - 1, 0) is None
    assert admission.refusal(most - 1, 500) is not None


def test_windows_count_as_full() -> None:
    """Young sessions ran with ease: whoever comes may stay until all are old."""
    machine, time = Machine(0), Time()
    admission = policy(warmed(machine, time))
    for sessions in range(1, 12):
        run(admission.predictor, machine, time, ordinary(sessions, 0), 60)
    most = admission.most(64)
    young = admission.predictor.p99(ordinary(most + 1, 0))
    assert young is not None and young < 80 * MS
    assert admission.refusal(most, 0) is not None


def test_no_memory_for_its_queues_refuses_a_session() -> None:
    machine, time = Machine(0), Time()
    predictor = warmed(machine, time)
    assert policy(predictor, lambda: 40_000_000).refusal(0, 0) is None
    refused = policy(predictor, lambda: 39_999_999).refusal(0, 0)
    assert refused is not None and refused.reason == "memory" and "40.0 MB left" in refused.detail


def row(slot: int, rows: int = 3, *, live: bool = True, reset: bool = False) -> RowPlan:
    audio = 2 if live else 0
    return RowPlan(f"s{slot}", slot, live, reset, rows - 1 - audio, 0, audio)


def test_ages_follow_the_plans() -> None:
    ages = Ages(window_rows=160, frames=2)

    def tick(*rows: RowPlan) -> Load:
        plan = TickPlan(0, 0, 8, 8, rows)
        load = ages.load(plan)
        ages.advance(plan)
        return load

    assert tick(row(0, 64, live=False, reset=True)) == Load(1, 64, 0)
    assert tick(row(0), row(1, reset=True)) == Load(2, 6, 4)  # 64 of 320, rounded up
    assert tick(row(0)) == Load(1, 3, 7)  # 64 + 3 + 1 made
    for _ in range(30):
        tick(row(0))
    assert tick(row(0)) == Load(1, 3, AGES)
    assert tick(row(0, reset=True)) == Load(1, 3, 0)
