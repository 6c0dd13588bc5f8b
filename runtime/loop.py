"""The tick: gather -> plan -> step -> emit. No torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from microturn.runtime.clock import Clock, Grid
from microturn.runtime.emit import Emitter
from microturn.runtime.engine import Engine, RowInput, TickOutputs
from microturn.runtime.garbage import SlackCollector
from microturn.runtime.isolate import Stepped, step_apart
from microturn.runtime.lateness import Ladder, LatenessPolicy, Rung
from microturn.runtime.metrics import Metrics, TickTiming
from microturn.runtime.plan import TickPlan
from microturn.runtime.scheduler import Gathered, Scheduler

log = logging.getLogger("microturn.runtime.loop")

Recorder = Callable[[TickPlan, Mapping[str, RowInput], TickOutputs], None]
Predictor = Callable[[TickPlan], float | None]
"""Seconds that a plan is going to take, as safely as whoever asks must know; None: no idea."""


def unknown(plan: TickPlan) -> float | None:
    """The predictor that knows nothing: nothing is caught up."""
    return None


class TickLoop:
    """Runs ticks on an absolute grid that begins with the first one.

    A tick that runs over lets the next one start late, or skips what lies a whole period behind
    (`Grid.after`): both are counted, and `policy` says what else. A step that raises is narrowed
    down to the sessions whose rows raise: each stays at its last commit, its inputs waiting for the
    next tick; after `max_failures` ticks in a row it is closed.
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
        policy: LatenessPolicy,
        samples_per_ms: float,
        max_failures: int,
        predict: Predictor = unknown,
        observe: Callable[[TickPlan, int], object] = lambda plan, ns: None,
        record: Recorder | None = None,
        between: Callable[[int], object] = lambda slack_ns: None,
    ) -> None:
        self._clock = clock
        self._period = period_ns
        self._scheduler = scheduler
        self._engine = engine
        self._emitter = emitter
        self._metrics = metrics
        self._collector = collector
        self._policy = policy
        self._ladder = Ladder(policy)
        self._keep = int(policy.degrade_to_ms * samples_per_ms)
        self._max_failures = max_failures
        self._predict = predict
        self._observe = observe
        self._record = record
        self._between = between
        self._grid: Grid | None = None
        self._next = 0

    def behind(self) -> bool:
        """Whether the tick under way, or the next one, is past its deadline."""
        return self._grid is not None and self._clock.now() > self._grid.deadline(self._next)

    def drain(self) -> None:
        """Hands out what is still under way: of this loop nothing, between ticks."""

    def tick(self, stop: threading.Event | None = None) -> TickPlan | None:
        """Waits for the next grid point and runs its tick. None when `stop` was set meanwhile."""
        if self._grid is None:
            self._grid = Grid(self._clock.now(), self._period)
        tick, grid = self._next, self._grid
        if not self._clock.wait_until(grid.due(tick), stop):
            return None
        plan, late = self._run(tick, grid)
        for _ in range(self._policy.catch_up_ticks):
            if not self._catch_up(tick, grid):
                break
        now = self._clock.now()
        self._next = grid.after(tick, now)
        if skipped := self._next - tick - 1:
            self._metrics.skipped_ticks += skipped
            self._scheduler.owe(skipped)
            log.warning(
                "tick %d ran %.1f ms, %d skipped", tick, (now - grid.due(tick)) / 1e6, skipped
            )
        self._climb(tick, late or (skipped > 0 and bool(plan.rows)))
        self._between(grid.due(self._next) - self._clock.now())
        self._collector.in_slack(grid.due(self._next) - self._clock.now())
        return plan

    def _run(self, tick: int, grid: Grid) -> tuple[TickPlan, bool]:
        """The tick, and whether its outputs were late."""
        woke = self._clock.now()
        began = time.perf_counter_ns()
        gathered = self._scheduler.gather()
        gathered_at = time.perf_counter_ns()
        plan, inputs = self._scheduler.plan(tick, grid.deadline(tick), gathered.shares)
        planned_at = time.perf_counter_ns()
        if not plan.rows:
            self._scheduler.settle(gathered, ())
            self._metrics.idle_ticks += 1
            return plan, False
        stepped = self._step(plan, inputs, gathered)
        stepped_at = time.perf_counter_ns()
        if not stepped.parts:
            return plan, self._clock.now() > plan.deadline
        slack, sessions = self._emit(plan, gathered, stepped, stepped_at - planned_at)
        timing = TickTiming(
            wake=woke - grid.due(tick),
            gather=gathered_at - began,
            plan=planned_at - gathered_at,
            step=stepped_at - planned_at,
            emit=time.perf_counter_ns() - stepped_at,
            slack=slack,
        )
        self._metrics.tick(timing, sessions, stepped.experts)
        self._observe(plan, self._period - slack - timing.wake)
        self._recorded(inputs, stepped)
        return plan, slack < 0

    def _catch_up(self, tick: int, grid: Grid) -> bool:
        """One more step for sessions that are owed one, if it ends before the deadline. Its outputs
        carry the tick's index and the media time that was missed.
        """
        gathered = self._scheduler.gather_owed()
        if not gathered.shares:
            return False
        plan, inputs = self._scheduler.plan(tick, grid.deadline(tick), gathered.shares)
        seconds = self._predict(plan)
        if seconds is None or self._clock.now() + seconds * 1e9 > plan.deadline:
            self._scheduler.put_back(gathered)
            return False
        self._scheduler.catch_up(gathered.shares)
        began = time.perf_counter_ns()
        stepped = self._step(plan, inputs, gathered)
        if not stepped.parts:
            return False
        took = time.perf_counter_ns() - began
        slack, sessions = self._emit(plan, gathered, stepped, took)
        self._metrics.caught_up(sessions, slack < 0)
        self._recorded(inputs, stepped)
        return True

    def _step(self, plan: TickPlan, inputs: Mapping[str, RowInput], gathered: Gathered) -> Stepped:
        """Steps and settles; what raised is counted and held against the culprits."""
        stepped = Stepped()
        try:
            step_apart(self._engine, plan, inputs, frozenset(self._scheduler.suspects), stepped)
        finally:
            self._scheduler.settle(gathered, stepped.committed)
        self._metrics.failed_steps += stepped.raised
        for session_id, error in stepped.culprits.items():
            log.error(
                "tick %d: the row of session %s raised", plan.tick, session_id, exc_info=error
            )
        self._scheduler.strike(stepped.culprits, self._max_failures)
        return stepped

    def _emit(
        self, plan: TickPlan, gathered: Gathered, stepped: Stepped, step_ns: int
    ) -> tuple[int, int]:
        """Hands out what was made: the slack in ns, and how many sessions got something."""
        rows, culprits = stepped.rows, stepped.culprits
        made = []
        for share in gathered.shares:
            if share.seat.session_id in culprits:
                continue
            row = rows.get(share.seat.session_id)
            output = self._emitter.make(share, row, plan.tick, step_ns)
            if output is not None:
                made.append((share, output))
        slack = plan.deadline - self._clock.now()
        for share, output in made:
            self._emitter.put(share, output, slack)
        return slack, len(made)

    def _recorded(self, inputs: Mapping[str, RowInput], stepped: Stepped) -> None:
        """A recording that fails is lost; the sessions go on."""
        if self._record is None:
            return
        for plan, outputs in stepped.parts:
            try:
                self._record(plan, inputs, outputs)
            except Exception:
                log.exception("tick %d could not be recorded", plan.tick)

    def _climb(self, tick: int, late: bool) -> None:
        ladder = self._ladder
        rung = ladder.climb(tick, late)
        if rung is Rung.NOTHING:
            return
        self._metrics.degraded += self._scheduler.degrade(self._keep)
        if rung is Rung.EVICT and ladder.since is not None:
            detail = f"ticks were late since tick {ladder.since}: one session ends for the others"
            if self._scheduler.evict_worst(ladder.since, detail) is not None:
                ladder.evicted()
