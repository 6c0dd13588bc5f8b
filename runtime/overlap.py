"""The tick loop for a device that is never to wait for the host. No torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from microturn.runtime.clock import Grid
from microturn.runtime.engine import Engine, RowInput, TickOutputs
from microturn.runtime.errors import EngineLost
from microturn.runtime.isolate import Stepped
from microturn.runtime.loop import TickLoop
from microturn.runtime.metrics import TickTiming
from microturn.runtime.plan import TickPlan
from microturn.runtime.scheduler import Gathered


@runtime_checkable
class Launches(Protocol):
    """An engine whose step has two halves, with another tick's half between them.

    step_ms  what the device took for the tick collected last, without its wait for the host
    """

    step_ms: float

    def launch(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> Any: ...
    def collect(self, ticket: Any) -> TickOutputs: ...


@dataclass
class _Flying:
    """A tick the device has been asked for, its timing up to then."""

    plan: TickPlan
    inputs: Mapping[str, RowInput]
    gathered: Gathered
    timing: TickTiming
    ticket: Any


class OverlappedLoop(TickLoop):
    """While the device runs a tick, the host hands out the one before and prepares the next.

    The same outputs as TickLoop's, each a period later, which its deadline allows: for devices
    whose step takes nearly a period. What a session brought counts as consumed once its tick was
    launched; a row that is not ok ends its session anyway, and a device that fails ends all. A
    launch that raises, before the device was asked, is stepped apart as in TickLoop. Nothing is
    caught up.
    """

    _flying: _Flying | None = None

    @property
    def _device(self) -> Launches:
        return cast(Launches, self._engine)  # asking whether it is one takes longer than a session

    def drain(self) -> None:
        """Hands out the tick that is still under way."""
        self._hand_out()

    def _run(self, tick: int, grid: Grid) -> tuple[TickPlan, bool]:
        woke = self._clock.now()
        began = time.perf_counter_ns()
        flying = self._flying
        gathered = self._scheduler.gather(flying.gathered.session_ids if flying else ())
        gathered_at = time.perf_counter_ns()
        plan, inputs = self._scheduler.plan(tick, grid.deadline(tick + 1), gathered.shares)
        planned_at = time.perf_counter_ns()
        if not plan.rows:
            late = self._hand_out()
            self._scheduler.settle(gathered, ())
            self._metrics.idle_ticks += 1
            return plan, late
        timing = TickTiming(
            wake=woke - grid.due(tick),
            gather=gathered_at - began,
            plan=planned_at - gathered_at,
            step=0,
            emit=0,
            slack=0,
        )
        if self._scheduler.suspects:
            return plan, self._apart(plan, inputs, gathered, timing, None)
        try:
            ticket = self._device.launch(plan, inputs)
        except EngineLost:
            self._scheduler.settle(gathered, ())
            raise
        except Exception as error:
            return plan, self._apart(plan, inputs, gathered, timing, error)
        late = self._hand_out()
        self._scheduler.settle(gathered, {row.session_id for row in plan.rows})
        self._flying = _Flying(plan, inputs, gathered, timing, ticket)
        return plan, late

    def _apart(
        self,
        plan: TickPlan,
        inputs: Mapping[str, RowInput],
        gathered: Gathered,
        timing: TickTiming,
        error: Exception | None,
    ) -> bool:
        """Steps a tick as TickLoop does, its first step having raised `error`; whether it or the
        tick before was late.
        """
        late = self._hand_out()
        began = time.perf_counter_ns()
        engine = self._engine
        self._engine = _Raised(engine, error)
        try:
            stepped = self._step(plan, inputs, gathered)
        finally:
            self._engine = engine
        if not stepped.parts:
            return late or self._clock.now() > plan.deadline
        flying = _Flying(plan, inputs, gathered, timing, None)
        return self._account(flying, stepped, time.perf_counter_ns() - began) or late

    def _hand_out(self) -> bool:
        """Whether the outputs of the tick under way were late; False when there is none."""
        flying, self._flying = self._flying, None
        if flying is None:
            return False
        outputs = self._device.collect(flying.ticket)
        # A tick that was done early waited for the next one's launch: that is no work.
        took = round(self._device.step_ms * 1e6)
        return self._account(flying, Stepped(parts=[(flying.plan, outputs)]), took)

    def _account(self, flying: _Flying, stepped: Stepped, took: int) -> bool:
        """Hands out and counts a tick that was stepped in so many ns; whether it was late."""
        stepped_at = time.perf_counter_ns()
        slack, sessions = self._emit(flying.plan, flying.gathered, stepped, took)
        emit = time.perf_counter_ns() - stepped_at
        timing = dataclasses.replace(flying.timing, step=took, emit=emit, slack=slack)
        self._metrics.tick(timing, sessions, stepped.experts)
        self._observe(flying.plan, took)
        self._recorded(flying.inputs, stepped)
        return slack < 0

    def _catch_up(self, tick: int, grid: Grid) -> bool:
        return False


class _Raised:
    """An engine whose next step raised already, where there is an error."""

    def __init__(self, engine: Engine, error: Exception | None) -> None:
        self._error = error
        self.num_slots, self.state_bytes = engine.num_slots, engine.state_bytes
        self.warm_up, self.close, self._step = engine.warm_up, engine.close, engine.step

    def step(self, plan: TickPlan, inputs: Mapping[str, RowInput]) -> TickOutputs:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._step(plan, inputs)
