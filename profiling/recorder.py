"""Ticks of a runtime as they run: the runtime's own accounting, and every op with its times.

Outside the `with` block nothing is installed. Inside, an op costs two looks at the clock, and a
step of the model a copy of where its lines stand.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from microturn.model.cost import TickWork
from microturn.model.interaction.step import ROWS
from microturn.profiling.ranges import Run, op_ranges

if TYPE_CHECKING:
    from microturn.runtime import Runtime
    from microturn.runtime.metrics import TickTiming


class Event(NamedTuple):
    """One call of an op, without the calls inside it; ns of perf_counter."""

    op: str
    start: int
    end: int


@dataclass
class Step:
    """One run of a family's tick program."""

    work: TickWork | None
    start: int
    end: int = 0
    events: list[Event] = field(default_factory=list)


@dataclass
class Tick:
    """wall: ns around the whole tick, measured by whoever ran it by hand; None where nobody did."""

    timing: TickTiming
    sessions: int
    steps: list[Step]
    wall: int | None = None


class Recorder:
    """`with recorder:` fills `ticks`; may be entered again and again, from one thread at a time.

    Only what the runtime's own stepping thread does is recorded: other runtimes of the process may
    go on beside it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.ticks: list[Tick] = []
        self._runtime = runtime
        self._steps: list[Step] = []
        self._stepping = 0
        self._entered = ExitStack()

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            stack.enter_context(op_ranges(self._timed))
            stack.callback(setattr, self._runtime.metrics, "watchers", self._watch())
            stack.callback(delattr, self._runtime.family, "tick")
            plain = self._runtime.family.tick
            self._runtime.family.tick = self._stepped(plain)  # type: ignore[method-assign]
            self._entered = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.close()

    def _watch(self) -> tuple[Any, ...]:
        """Watches too; what watched before."""
        metrics = self._runtime.metrics
        before = metrics.watchers
        metrics.watchers = (*before, self._ticked)
        return before

    def _ticked(self, timing: TickTiming, sessions: int) -> None:
        self.ticks.append(Tick(timing, sessions, self._steps))
        self._steps = []

    def _stepped(self, plain: Run) -> Run:
        def tick(inputs: Any, outputs: Any, arenas: Any) -> None:
            step = Step(_work(inputs, arenas), perf_counter_ns())
            self._steps.append(step)
            self._stepping = threading.get_ident()
            try:
                plain(inputs, outputs, arenas)
            finally:
                self._stepping = 0
                step.end = perf_counter_ns()

        return tick

    def _timed(self, op: str, run: Run) -> Run:
        def timed(*args: Any, **kwargs: Any) -> Any:
            thread = threading.get_ident()
            if self._stepping != thread:  # an op inside an op, or somebody else's
                return run(*args, **kwargs)
            self._stepping = 0
            start = perf_counter_ns()
            try:
                return run(*args, **kwargs)
            finally:
                self._steps[-1].events.append(Event(op, start, perf_counter_ns()))
                self._stepping = thread

        return timed


def _work(inputs: Any, arenas: Any) -> TickWork | None:
    """What the step is about to do; None on a device, where asking would wait for it."""
    slots = inputs.slot_ids
    if slots.device.type != "cpu":
        return None
    offsets = inputs.row_offsets.tolist()
    counts = tuple(b - a for a, b in pairwise(offsets))
    try:
        at = arenas.cursor(ROWS)
    except KeyError:  # a family that keeps no such count
        return None
    known = zip(slots.tolist(), inputs.reset.tolist(), strict=True)
    starts = tuple(0 if fresh or slot < 0 else int(at[slot]) for slot, fresh in known)
    return TickWork(counts, starts, inputs.size.speaking, inputs.size.patches)
