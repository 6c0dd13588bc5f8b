"""Ticks on their grid: what is late, what is skipped, who ticks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microturn.runtime import FastClock, RealClock, Runtime, RuntimeClosed, VirtualClock
from microturn.runtime.cpu_engine import CpuEngine
from microturn.runtime.garbage import SlackCollector

MakeRuntime = Callable[..., Runtime]
MS = 1_000_000


class SlowEngine(CpuEngine):
    """Takes the given ms of a virtual clock, step by step."""

    clock = VirtualClock()
    takes: tuple[int, ...] = ()

    def step(self, plan: Any, inputs: Any) -> Any:
        if self.takes:
            self.clock.advance(self.takes[0] * MS)
            self.takes = self.takes[1:]
        return super().step(plan, inputs)


def slow_runtime(make: MakeRuntime, family: Any, *takes: int) -> Runtime:
    clock = VirtualClock(12_345)
    engine = SlowEngine(family, 4)
    runtime = make(model=family, engine=engine, clock=clock)
    engine.clock, engine.takes = clock, takes
    return runtime


def test_late_and_skipped_ticks_are_counted_exactly(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> None:
    runtime = slow_runtime(make_runtime, make_family(), 99, 100, 101, 250, 30, 999, 0)
    sessions = [runtime.open(), runtime.open()]
    plans = [runtime.tick() for _ in range(7)]
    assert [p.tick for p in plans] == [0, 1, 2, 3, 6, 7, 17]
    assert [(p.deadline - 12_345) // MS for p in plans] == [100, 200, 300, 400, 700, 800, 1_800]
    outputs = tools.drain(sessions[0])
    assert [o.slack_ms for o in outputs] == [1, 0, -1, -151, 70, -899, 100]
    assert [o.late for o in outputs] == [False, False, True, True, False, True, False]
    assert [o.start_ms for o in outputs] == [100 * k for k in range(7)], "media time has no gaps"
    summary = runtime.summary()
    assert (summary["ticks"], summary["misses"], summary["skipped_ticks"]) == (7, 3, 2 + 9)
    assert summary["miss_rate"] == 14 / 18
    assert 14 / 18 < summary["miss_rate_upper95"] < 1
    assert (summary["session_ticks"], summary["late_session_ticks"]) == (14, 6)
    assert summary["slack_ms_min"] == -899.0
    assert sessions[1].stats.late_ticks == 3


def test_a_clock_that_jumps_between_ticks_makes_a_late_start_not_a_miss(
    make_runtime: MakeRuntime, make_family: Any
) -> None:
    runtime = slow_runtime(make_runtime, make_family())
    session = runtime.open()
    runtime.tick()
    runtime.clock.advance(130 * MS)  # type: ignore[attr-defined]
    assert runtime.tick().tick == 1
    output = [session.poll(), session.poll()][1]
    assert output is not None and output.slack_ms == 70.0
    assert runtime.summary()["wake_ms"]["max"] == pytest.approx(30.0, rel=1e-3)


def test_ticks_without_sessions_are_idle_and_cannot_miss(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    for _ in range(5):
        assert runtime.tick().rows == ()
    paused = runtime.open()
    paused.pause()
    runtime.tick()
    summary = runtime.summary()
    assert (summary["ticks"], summary["idle_ticks"], summary["step_ms"]) == (0, 6, {})
    assert summary["miss_rate_upper95"] == 1.0


def test_the_clock_thread_keeps_real_time(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    began = time.monotonic()
    with make_runtime(clock=RealClock()) as runtime:
        session = runtime.open(seed=1)
        with pytest.raises(RuntimeError, match="clock thread"):
            runtime.tick()
        with pytest.raises(RuntimeError, match="already"):
            runtime.start()
        outputs = []
        for output in session:
            outputs.append(output)
            if len(outputs) == 5:
                break
        took = time.monotonic() - began
    assert 0.35 <= took < 3
    assert runtime.summary()["session_ticks"] >= 5
    assert not any(t.name == "microturn-clock" for t in threading.enumerate())
    by_hand = make_runtime()
    same = by_hand.open(seed=1)
    for _ in range(5):
        by_hand.tick()
    assert tools.bits(tools.drain(same)) == tools.bits(outputs), "the bits know no clock"


def test_a_fast_clock_gives_the_same_bits_at_once(
    make_runtime: MakeRuntime, tools: SimpleNamespace
) -> None:
    runs = []
    for clock in (FastClock(), VirtualClock()):
        runtime = make_runtime(clock=clock)
        session = runtime.open(seed=1)
        for k in range(40):
            session.push_audio(tools.noise(1_600, k), 16_000)
            runtime.tick()
        outputs = tools.drain(session)
        runs.append(tools.bits(outputs))
        if isinstance(clock, FastClock):
            assert all(o.slack_ms < 100 for o in outputs)
            late = sum(o.late for o in outputs)
            assert runtime.summary()["misses"] == session.stats.late_ticks == late
    assert runs[0] == runs[1]


def test_a_dead_clock_thread_ends_the_sessions_with_its_error(
    make_runtime: MakeRuntime, make_family: Any
) -> None:
    family = make_family()
    runtime = make_runtime(model=family, clock=RealClock())
    session = runtime.open()
    runtime._scheduler.gather = None  # type: ignore[assignment, method-assign]
    assert len(list(session)) <= 1
    assert session.closed_reason is not None
    assert "clock thread died: TypeError" in session.closed_reason.detail
    assert not runtime.ready
    with pytest.raises(RuntimeClosed) as error:
        runtime.open()
    assert isinstance(error.value.__cause__, TypeError)


def test_an_interrupt_in_a_step_by_hand_loses_no_input(
    make_runtime: MakeRuntime, make_family: Any, tools: SimpleNamespace
) -> None:
    class Interrupted(CpuEngine):
        armed = False

        def step(self, plan: Any, inputs: Any) -> Any:
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return super().step(plan, inputs)

    family = make_family()
    engine = Interrupted(family, 1)
    runtime = make_runtime(model=family, engine=engine)
    session = runtime.open("a b c")
    session.push_audio(tools.noise(1_600), 16_000)
    engine.armed = True
    with pytest.raises(KeyboardInterrupt):
        runtime.tick()
    runtime.tick()
    (output,) = tools.drain(session)
    assert output.inserted_silence_ms == 0
    assert len(family.fed[-1][0].context_ids) == 3


def test_garbage_is_collected_in_slack_only_and_given_back() -> None:
    class Knot:
        def __init__(self) -> None:
            self.me = self

    def knots() -> int:
        return sum(isinstance(o, Knot) for o in gc.get_objects())

    collector, second = SlackCollector(), SlackCollector()
    collector.start()
    second.start()
    try:
        assert not gc.isenabled() and gc.get_freeze_count() > 1_000
        for _ in range(2_000):
            Knot()
        assert knots() == 2_000
        collector.in_slack(-5)
        assert knots() == 2_000
        collector.in_slack(50 * MS)
        assert knots() == 0
        Knot()
        for _ in range(60):
            collector.in_slack(-5)
        assert knots() == 0, "without any slack memory stays bounded too"
    finally:
        collector.stop()
        assert not gc.isenabled()
        second.stop()
        second.stop()
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_the_step_runs_in_inference_mode_with_the_threads_asked_for(
    make_runtime: MakeRuntime, make_family: Any
) -> None:
    import torch

    family, seen = make_family(), []
    tick = family.tick

    def spy(*args: Any) -> Any:
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return tick(*args)

    family.tick = spy
    runtime = make_runtime(model=family, threads=2)
    runtime.open()
    runtime.tick()
    torch.set_num_threads(1)
    assert set(seen) == {(2, True)}
    assert np.isfinite(runtime.warm_up_ms) and runtime.state_bytes > 0
