"""The ladder, catch-up, and steps that are narrowed down to the rows that raise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microturn.bench.chaos.echo import SHAPE, EchoEngine, EchoFamily
from microturn.runtime import ConfigError, Runtime, RuntimeClosed, RuntimeConfig, VirtualClock
from microturn.runtime.engine import RowInput
from microturn.runtime.errors import CloseCode, EngineLost, SessionClosed
from microturn.runtime.isolate import Stepped, step_apart
from microturn.runtime.lateness import COUNT_ONLY, Ladder, LatenessPolicy, Rung
from microturn.runtime.plan import RowPlan, plan_of

MS = 1_000_000
SECOND = np.arange(1, 1_001, dtype=np.float32) / 2_000


class Stage:
    """A runtime around the echo whose steps take `ms` each; sessions hear a ramp."""

    def __init__(self, slots: int = 4, predict: Any = None, **config: Any) -> None:
        self.clock = VirtualClock(777)
        self.ms = 10
        self.engine = EchoEngine(slots, self.clock, lambda rows: self.ms * MS)
        given = {} if predict is None else {"predict": predict}
        self.runtime = Runtime(
            model=EchoFamily(),  # type: ignore[arg-type]
            engine=self.engine,
            clock=self.clock,
            max_sessions=slots,
            **{"lateness": COUNT_ONLY, "input_queue_ms": 1_000, **config},
            **given,
        )

    def open(self, ms: int = 0) -> Any:
        session = self.runtime.open()
        if ms:
            session.push_audio(SECOND[:ms], SHAPE.input_rate)
        return session

    def tick(self, *ms: int) -> list[int]:
        """Ticks whose steps take so long; their places on the grid."""
        places = []
        for self.ms in ms:
            places.append(self.runtime.tick().tick)
        return places


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(*args: Any, **config: Any) -> Stage:
        made.append(Stage(*args, **config))
        return made[-1]

    yield make
    for one in made:
        one.runtime.close()


def read(session: Any) -> list[Any]:
    return list(iter(session.poll, None))


def heard(outputs: list[Any]) -> np.ndarray:
    return np.concatenate([output.audio for output in outputs])


def test_a_stall_of_any_length_is_one_late_tick_and_only_what_lasts_climbs() -> None:
    ladder = Ladder(LatenessPolicy(degrade_after=2, evict_after=4))
    late = [ladder.climb(tick, True) for tick in (5, 7, 8)]
    assert late == [Rung.NOTHING, Rung.DEGRADE, Rung.DEGRADE] and ladder.since == 5
    assert ladder.climb(9, False) is Rung.NOTHING
    assert [ladder.climb(tick, True) for tick in (10, 11)] == [Rung.DEGRADE, Rung.EVICT]
    assert ladder.climb(12, True) is Rung.EVICT, "until somebody went"
    ladder.evicted()
    assert (ladder.lateness, ladder.since) == (0, None)
    for tick in range(20, 40):
        assert ladder.climb(tick, tick % 2 == 0) is Rung.NOTHING, "every other tick does not last"
    assert ladder.since is None
    off = Ladder(COUNT_ONLY)
    assert {off.climb(tick, True) for tick in range(100)} == {Rung.NOTHING}


@pytest.mark.parametrize(
    ("rungs", "says"),
    [
        ({"evict_after": -1}, "lateness.evict_after must be an integer of 0 or more, got -1"),
        ({"degrade_to_ms": 1.5}, "lateness.degrade_to_ms must be an integer"),
        ({"evict_after": 2}, "must not come before degrade_after, got 2 and 3"),
        ({"evict": 2}, "lateness: unknown evict; known: degrade_after"),
    ],
)
def test_a_bad_rung_is_named(rungs: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        RuntimeConfig(lateness=rungs)  # type: ignore[arg-type]
    path = tmp_path / "runtime.toml"
    path.write_text("[lateness]\nevict_after = 9\ncatch_up_ticks = 0\n")
    assert RuntimeConfig.from_file(path).lateness == LatenessPolicy(evict_after=9, catch_up_ticks=0)


def test_lasting_lateness_drops_old_input_with_a_mark(stage: Callable[..., Stage]) -> None:
    policy = LatenessPolicy(degrade_after=2, degrade_to_ms=250, evict_after=0)
    show = stage(lateness=policy)
    session, short = show.open(900), show.open(300)
    assert show.tick(120) == [0]
    assert session.stats.dropped_ms == 0, "one late tick is only counted"
    show.tick(120)
    assert (session.stats.dropped_ms, session.stats.waiting_audio_ms) == (450, 250)
    assert short.stats.dropped_ms == 0, "who is not behind loses nothing"
    show.tick(10)
    outputs = read(session)
    assert [o.dropped_ms for o in outputs] == [0, 0, 450]
    assert (heard(outputs) == np.concatenate([SECOND[:200], SECOND[650:750]])).all()
    assert show.runtime.metrics.degraded == 1
    assert not [o for o in read(short) if o.dropped_ms]


def test_input_that_waits_for_our_lateness_closes_nobody(stage: Callable[..., Stage]) -> None:
    show = stage(input_overflow="close", input_queue_ms=300)
    session = show.open(100)
    show.tick(10)
    session.push_audio(SECOND[100:200], SHAPE.input_rate)
    show.engine.during += [
        lambda: session.push_audio(SECOND[500:800], SHAPE.input_rate),
        lambda: session.push_audio(SECOND[200:500], SHAPE.input_rate),
    ]
    assert show.tick(650) == [1] and not show.engine.during
    session.push_audio(SECOND[800:900], SHAPE.input_rate)
    assert show.tick(10) == [8], "ran over six grid points"
    outputs = read(session)
    assert [o.dropped_ms for o in outputs] == [0, 0, 400]
    assert (heard(outputs) == np.concatenate([SECOND[:200], SECOND[600:700]])).all()
    show.tick(10, 10, 10)
    assert session.state == "live"
    session.push_audio(SECOND[:300], SHAPE.input_rate)
    with pytest.raises(SessionClosed, match="input_overflow"):
        session.push_audio(SECOND[:300], SHAPE.input_rate)


def test_the_worst_goes_for_the_others_but_never_the_last(stage: Callable[..., Stage]) -> None:
    show = stage(lateness=LatenessPolicy(degrade_after=0, evict_after=3))
    first, greedy, third = show.open(), show.open(), show.open()
    show.tick(*[10] * 5)
    for _ in range(5):
        greedy.append_context("1 2 3 4 5 6")
        show.tick(10)
    assert show.tick(110, 110) and greedy.state == "live"
    show.tick(110)
    assert greedy.closed_reason.code is CloseCode.OVERLOADED
    assert "late since tick" in greedy.closed_reason.detail
    show.tick(10)
    assert (first.state, third.state) == ("live", "live")
    show.tick(10, 110, 110, 110)
    assert third.closed_reason.code is CloseCode.OVERLOADED, "of equals the last to come"
    show.tick(*[110] * 9)
    assert first.state == "live", "nobody is left for whom it could go"
    assert show.runtime.summary()["sessions_closed"] == {"overloaded": 2}


def test_a_newcomer_goes_before_those_who_were_here(stage: Callable[..., Stage]) -> None:
    show = stage(lateness=LatenessPolicy(degrade_after=0, evict_after=3))
    greedy = show.open()
    show.tick(10)
    for _ in range(3):
        greedy.append_context("1 2 3 4 5 6")
        show.tick(10)
    show.open().pause()
    newcomer = show.open()
    greedy.append_context("1 2 3 4 5 6")
    show.tick(110, 110, 110)
    assert newcomer.closed_reason.code is CloseCode.OVERLOADED
    assert greedy.state == "live", "it brought most rows, but was here before"


def test_a_skipped_tick_is_caught_up_where_the_prediction_fits(
    stage: Callable[..., Stage],
) -> None:
    asked = []

    def predict(plan: Any) -> float:
        asked.append(plan)
        return 0.045

    show = stage(predict=predict, lateness=LatenessPolicy(catch_up_ticks=2))
    session, starved = show.open(900), show.open(100)
    assert show.tick(10, 340, 40, 40) == [0, 1, 5, 6]
    outputs = read(session)
    assert [o.tick for o in outputs] == [0, 1, 5, 5, 6, 6], "twice 40 ms fit, three times do not"
    assert [o.start_ms for o in outputs] == [0, 100, 200, 300, 400, 500]
    assert (heard(outputs) == SECOND[:600]).all() and not any(o.dropped_ms for o in outputs)
    assert {len(plan.rows) for plan in asked} == {1}, "nobody is owed silence"
    assert [o.tick for o in read(starved)] == [0, 1, 5, 6]
    show.tick(10, 10)
    outputs = read(session)
    assert [o.tick for o in outputs] == [7, 7, 8], "three were skipped, three were given back"
    assert show.runtime.metrics.caught_up_session_ticks == 3
    summary = show.runtime.summary()
    assert (summary["ticks"], summary["misses"], summary["skipped_ticks"]) == (6, 1, 3)


@pytest.mark.parametrize("seconds", [None, 0.095])
def test_nothing_is_caught_up_that_would_not_be_in_time(
    stage: Callable[..., Stage], seconds: float | None
) -> None:
    show = stage(predict=lambda plan: seconds, lateness=LatenessPolicy())
    session = show.open(800)
    show.tick(10, 340, 10, 10, 10)
    outputs = read(session)
    assert [o.tick for o in outputs] == [0, 1, 5, 6, 7]
    assert (heard(outputs) == SECOND[:500]).all()
    assert show.runtime.metrics.caught_up_session_ticks == 0


def row(name: str, slot: int) -> RowPlan:
    return RowPlan(name, slot, True, False, 0, 0, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 33])
def test_one_row_that_raises_is_found_in_a_logarithm_of_steps(count: int) -> None:
    audio = np.ones(SHAPE.input_samples, np.float32)
    inputs = {f"s{i}": RowInput(audio, (), i, Any) for i in range(count)}  # type: ignore[arg-type]
    plan = plan_of(3, 9, tuple(row(f"s{i}", i) for i in range(count)))
    for culprit in range(count):
        engine = EchoEngine(count, VirtualClock())
        engine.faults[f"s{culprit}"] = ValueError("planted")
        done = Stepped()
        step_apart(engine, plan, inputs, (), done)
        assert set(done.culprits) == {f"s{culprit}"}
        assert done.committed == set(inputs) - set(done.culprits) == set(done.rows)
        assert len(engine.calls) <= 2 * int(np.ceil(np.log2(count))) + 1
        assert {(part.tick, part.deadline) for part, _ in done.parts} <= {(3, 9)}
        again = Stepped()
        engine.calls.clear()
        step_apart(engine, plan, inputs, done.culprits, again)
        assert len(engine.calls) == min(2, count) and again.raised == 1, "a suspect steps alone"


def test_a_lost_engine_ends_the_sessions_and_the_clock(stage: Callable[..., Stage]) -> None:
    show = stage()
    session = show.open()
    show.tick(10)
    show.engine.lost = True
    with pytest.raises(EngineLost, match="planted"):
        show.runtime.tick()
    assert len(show.engine.calls) == 2, "nothing is tried again"
    assert session.closed_reason.code is CloseCode.INTERNAL
    assert "EngineLost: planted" in session.closed_reason.detail and not show.runtime.ready
    with pytest.raises(RuntimeClosed):
        show.runtime.tick()
