"""The tick: gather -> plan -> step -> emit. No torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from microturn.runtime.clock import Clock, Grid
from microturn.runtime.emit import Emitter
from microturn.runtime.engine import Engine, RowInput, TickOutputs
from microturn.runtime.errors import CloseCode, CloseReason
from microturn.runtime.garbage import SlackCollector
from microturn.runtime.metrics import Metrics, TickTiming
from microturn.runtime.plan import TickPlan
from microturn.runtime.scheduler import Gathered, Scheduler

log = logging.getLogger("microturn.runtime.loop")

Recorder = Callable[[TickPlan, Mapping[str, RowInput], TickOutputs], None]


class TickLoop:
    """Runs ticks on an absolute grid that begins with the first one.

    A tick that runs over lets the next one start late, or skips what lies a whole period behind
    (`Grid.after`): both are counted. A step that raises is counted too and leaves every session
    at its last commit, its inputs waiting for the next tick; after `max_failures` in a row the
    sessions that were in it are closed.
    """

    def __init__(
        self,
        clock: Clock,
        period_ns: int,
        scheduler: Scheduler,
        engine: Engine,
        emitter: Emitter,
        metrics: Metrics,
        collector: SlackCollector,
        *,
        max_failures: int,
        record: Recorder | None = None,
    ) -> None:
        self._clock = clock
        self._period = period_ns
        self._scheduler = scheduler
        self._engine = engine
        self._emitter = emitter
        self._metrics = metrics
        self._collector = collector
        self._max_failures = max_failures
        self._record = record
        self._grid: Grid | None = None
        self._next = 0
        self._failures = 0

    def tick(self, stop: threading.Event | None = None) -> TickPlan | None:
        """Waits for the next grid point and runs its tick. None when `stop` was set meanwhile."""
        if self._grid is None:
            self._grid = Grid(self._clock.now(), self._period)
        tick, grid = self._next, self._grid
        if not self._clock.wait_until(grid.due(tick), stop):
            return None
        plan = self._run(tick, grid)
        now = self._clock.now()
        self._next = grid.after(tick, now)
        if skipped := self._next - tick - 1:
            self._metrics.skipped_ticks += skipped
            log.warning(
                "tick %d ran %.1f ms, %d skipped", tick, (now - grid.due(tick)) / 1e6, skipped
            )
        self._collector.in_slack(grid.due(self._next) - now)
        return plan

    def _run(self, tick: int, grid: Grid) -> TickPlan:
        woke = self._clock.now()
        began = time.perf_counter_ns()
        gathered = self._scheduler.gather()
        gathered_at = time.perf_counter_ns()
        plan, inputs = self._scheduler.plan(tick, grid.deadline(tick), gathered.shares)
        planned_at = time.perf_counter_ns()
        if not plan.rows:
            self._scheduler.settle(gathered, True)
            self._metrics.idle_ticks += 1
            return plan
        outputs = self._step(plan, inputs, gathered)
        if outputs is None:
            return plan
        stepped_at = time.perf_counter_ns()
        made = []
        for share in gathered.shares:
            row = outputs.rows.get(share.seat.session_id)
            output = self._emitter.make(share, row, tick, stepped_at - planned_at)
            if output is not None:
                made.append((share, output))
        slack = grid.deadline(tick) - self._clock.now()
        for share, output in made:
            self._emitter.put(share, output, slack)
        timing = TickTiming(
            wake=woke - grid.due(tick),
            gather=gathered_at - began,
            plan=planned_at - gathered_at,
            step=stepped_at - planned_at,
            emit=time.perf_counter_ns() - stepped_at,
            slack=slack,
        )
        self._metrics.tick(timing, len(made))
        if self._record is not None:
            self._record(plan, inputs, outputs)
        return plan

    def _step(
        self, plan: TickPlan, inputs: Mapping[str, RowInput], gathered: Gathered
    ) -> TickOutputs | None:
        committed = False
        try:
            outputs = self._engine.step(plan, inputs)
            committed = True
        except Exception as error:
            self._failed(plan, error)
            return None
        finally:
            self._scheduler.settle(gathered, committed)
        self._failures = 0
        return outputs

    def _failed(self, plan: TickPlan, error: Exception) -> None:
        self._failures += 1
        self._metrics.failed_steps += 1
        log.error(
            "tick %d: the step raised, %d in a row; nothing was committed for sessions %s",
            plan.tick,
            self._failures,
            ", ".join(row.session_id for row in plan.rows),
            exc_info=error,
        )
        if self._failures < self._max_failures:
            return
        self._failures = 0
        detail = f"{self._max_failures} steps in a row raised, the last {type(error).__name__}"
        for row in plan.rows:
            reason = CloseReason(CloseCode.STEP_FAILED, f"{detail}: {error}")
            self._scheduler.end(row.session_id, reason)
