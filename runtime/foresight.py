"""What a runtime foresees: its predictor, fed by warm-up and by every tick, and its admission."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from microturn.model.cost import CountsCost, even, totals
from microturn.model.family import Sampling
from microturn.runtime import machine
from microturn.runtime.admission import (
    AGES,
    Admission,
    Ages,
    Amounts,
    Load,
    Refusal,
    TickPredictor,
    counted,
)
from microturn.runtime.config import RuntimeConfig
from microturn.runtime.engine import Engine, RowInput
from microturn.runtime.image_input import PATCH
from microturn.runtime.plan import RowPlan, TickPlan, plan_of

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily, TickShape
    from microturn.runtime.clock import Clock

REPEATS = 6
"""Ticks of each load that warm-up times."""

BALANCE = {"cpu": 5.0, "cuda": 200.0}
"""Flops in the time of a byte, about: how traffic and arithmetic are added up."""

PATCH_BYTES = 2 * int(np.prod(PATCH))


@runtime_checkable
class AgesSlots(Protocol):
    """An engine that can be measured as it will be when its sessions are old."""

    def age_slot(self, slot: int) -> None:
        """The slot's windows are full, of zeros. Call between ticks, for measuring only."""
        ...


class Foresight:
    """Ticks of one runtime, measured and predicted, and whether one more session may come.

    Where the clock is driven by hand nobody waits, and `admission="auto"` lets in whoever finds a
    slot.
    """

    def __init__(self, family: ModelFamily, config: RuntimeConfig, clock: Clock) -> None:
        shape = family.shape
        self.active = config.admission == "predict" or (
            config.admission == "auto" and not clock.by_hand
        )
        window = family.window_rows if isinstance(family, CountsCost) else 0
        self._shape, self._sees = shape, family.sees
        self._ages = Ages(window, shape.frames)
        self._clock = clock
        self._engine: Engine | None = None
        self.predictor = TickPredictor(amounts_of(family, config.device), now=clock.now)
        self.admission = Admission(
            self.predictor,
            period_ns=shape.tick_ms * 1_000_000,
            margin_ns=config.admission_margin_ms * 1_000_000,
            rows=1 + shape.frames,
            max_rows=shape.max_rows,
            session_bytes=session_bytes(config, shape, family.sees),
            free_bytes=lambda: machine.memory_bytes()[1],
            welcome=config.admission == "auto",
        )

    def calibrate(self, engine: Engine, num_slots: int) -> None:
        """Measures, where somebody is going to ask."""
        self._engine = engine
        if self.active:
            self.measure(num_slots)

    def measure(self, num_slots: int) -> None:
        """Times ticks of 1, 2, 4 ... sessions on slots that hold none, their windows full where the
        engine can pretend that; as far as they fit the period. The slots are as good as new
        afterwards: a new tenant's first tick resets its own.
        """
        engine = self._engine
        assert engine is not None, "calibrate comes first"
        ages = isinstance(engine, AgesSlots)
        for sessions in doubling(num_slots):
            young, old = self._time(engine, sessions, aged=ages)
            self.predictor.probe(self._probed(sessions, 0, 0), young)
            if old:
                self.predictor.probe(self._probed(sessions, 0, AGES), old)
            if min(old or young) > self.admission.period_ns:
                break
        # A session that reads, or sees, as much as a tick takes, beside what one brings anyway.
        room = self._shape.max_rows - self.admission.rows
        self.predictor.probe(self._probed(1, room, 0), self._time(engine, 1, reads=room)[0])
        if self._sees:
            shown = self._probed(1, room, 0)._replace(patches=room)
            self.predictor.probe(shown, self._time(engine, 1, sees=room)[0])
        self.prepare(0, 0, ())

    def age(self, slots: Iterable[int]) -> bool:
        """The windows of these slots are full from now on, of zeros: to measure what old sessions
        cost. Call between ticks. False where the engine cannot pretend that.
        """
        if not isinstance(self._engine, AgesSlots):
            return False
        for slot in slots:
            self._engine.age_slot(slot)
            self._ages.fill(slot)
        return True

    def observe(self, plan: TickPlan, ns: int) -> None:
        """A tick ran and took so long, from its beginning until its outputs were out."""
        self.predictor.observe(self._ages.load(plan), ns)
        self._ages.advance(plan)

    def seconds(self, plan: TickPlan) -> float | None:
        """See loop.Predictor."""
        ns = self.predictor.p99(self._ages.load(plan), wait=False)
        return None if ns is None else ns / 1e9

    def prepare(self, sessions: int, waiting_rows: int, images: Sequence[int]) -> None:
        """Works out beforehand, in the thread of who wants to join so many sessions, what `refusal`
        will be asked while ticks wait.
        """
        if self.active:
            self.predictor.refresh()
            self.admission.refusal(sessions, waiting_rows, images)

    def refusal(self, sessions: int, waiting_rows: int, images: Sequence[int]) -> Refusal | None:
        """See Admission.refusal."""
        if not self.active:
            return None
        return self.admission.refusal(sessions, waiting_rows, images)

    def summary(self, num_slots: int) -> dict[str, Any]:
        """Predicted p50 and p99 in ms of ticks with windows full, and how many sessions fit."""
        if not self.active:
            return {}
        p50, p99 = self.predictor.p50, self.predictor.p99
        return {
            "predicted_sessions": self.admission.most(num_slots),
            "predicted_ms": {
                str(n): {"p50": (p50(load) or 0) / 1e6, "p99": (p99(load) or 0) / 1e6}
                for n in doubling(num_slots)
                for load in (self.admission.load(n),)
            },
        }

    def _probed(self, sessions: int, reads: int, age: int) -> Load:
        return Load(sessions, self.admission.rows * sessions + reads, age)

    def _time(
        self,
        engine: Engine,
        sessions: int,
        *,
        reads: int = 0,
        sees: int = 0,
        aged: bool = False,
    ) -> tuple[Sequence[int], Sequence[int]]:
        """ns of ticks with windows empty, and full."""
        opened = usual_plan(self._shape, sessions, reset=True)
        plan = usual_plan(self._shape, sessions, reads=reads, sees=sees)
        inputs = usual_inputs(self._shape, plan)
        engine.step(opened, usual_inputs(self._shape, opened))
        young = [self._clocked(engine, plan, inputs) for _ in range(2 if aged else REPEATS)]
        if not aged:
            return young, ()
        assert isinstance(engine, AgesSlots)
        for slot in range(sessions):
            engine.age_slot(slot)
        engine.step(plan, inputs)
        return young, [self._clocked(engine, plan, inputs) for _ in range(REPEATS)]

    def _clocked(self, engine: Engine, plan: TickPlan, inputs: dict[str, RowInput]) -> int:
        """By the runtime's clock where it runs, as ticks will be; a probe takes some time."""
        began = self._clock.now()
        engine.step(plan, inputs)
        return max(1, self._clock.now() - began)


def amounts_of(family: ModelFamily, device: str) -> Amounts:
    """Work on rows, on keys and on sessions, each in bytes; without formulas, what can be
    counted.
    """
    if not isinstance(family, CountsCost):
        return counted
    costs: CountsCost = family
    balance = BALANCE[device.partition(":")[0]]
    itemsize = 4 if device == "cpu" else 2

    def amounts(load: Load) -> Sequence[float]:
        start = -(-load.age * costs.window_rows // AGES)
        groups: dict[str, list[Any]] = {"rows": [], "keys": [], "sessions": []}
        work = replace(even(load.sessions, load.rows, start), patches=load.patches)
        for call in costs.calls(work):
            if call.op == "streaming_attention":
                groups["keys"].append(call)
            elif call.part in ("embed", "append") or call.part.startswith("decode"):
                groups["rows"].append(call)
            else:
                groups["sessions"].append(call)
        return 1.0, *map(weigh, groups.values())

    def weigh(calls: list[Any]) -> float:
        found = totals(calls, itemsize)
        return found.bytes + found.flops / balance

    return amounts


def session_bytes(config: RuntimeConfig, shape: TickShape, sees: bool) -> int:
    """What a session's queues may come to hold, in bytes."""
    heard = 4 * config.input_queue_ms * shape.input_rate // 1000
    said = config.output_queue_ticks * 4 * shape.output_samples
    told = 8 * config.context_queue_rows
    return heard + said + told + config.image_queue_rows * PATCH_BYTES * sees


def doubling(most: int) -> Iterator[int]:
    """1, 2, 4 ... and `most`."""
    step = 1
    while step < most:
        yield step
        step *= 2
    yield most


def usual_plan(
    shape: TickShape, sessions: int, *, reads: int = 0, sees: int = 0, reset: bool = False
) -> TickPlan:
    """A tick for measuring: slots 0.. hear and speak, and read or see so many rows each."""
    rows = tuple(
        RowPlan(
            session_id=f"measured-{slot}",
            slot=slot,
            exec=True,
            reset=reset,
            n_context=reads,
            n_patches=sees,
            n_audio=shape.frames,
        )
        for slot in range(sessions)
    )
    return plan_of(0, 0, rows)


def usual_inputs(shape: TickShape, plan: TickPlan) -> dict[str, RowInput]:
    """Noise for all of them."""
    heard = np.random.default_rng(0).standard_normal(shape.input_samples) * 0.05
    audio = np.clip(heard, -1, 1).astype(np.float32)
    return {
        row.session_id: RowInput(
            audio,
            (0,) * row.n_context,
            row.slot,
            Sampling(),
            np.zeros((row.n_patches, *PATCH), np.int16),
        )
        for row in plan.rows
    }
