"""Where a tick's time goes: the runtime's own accounting, then ops under torch's profiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.profiler import ProfilerActivity, profile, record_function

from microturn.profiling.ranges import op_ranges, totals
from microturn.runtime import FastClock, Runtime, Session

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily

PHASES = ("gather", "plan", "step", "emit")
MOST_PROFILED_TICKS = 5
NOISE_RMS = 0.05


@dataclass(frozen=True)
class OpShare:
    """One op over the profiled ticks, a tick: calls, ms without the ops inside it, torch calls.

    share: of the profiled step.
    """

    op: str
    calls: float
    ms: float
    torch_calls: float
    share: float


@dataclass(frozen=True)
class Capture:
    """phases: {"p50", "p90", "p99", "p999", "max"} ms of each phase, measured without a profiler.

    step_ms           median step without the profiler
    profiled_step_ms  mean step under it: what the ops add up to, with what is outside them
    """

    phases: Mapping[str, Mapping[str, float]]
    step_ms: float
    profiled_step_ms: float
    profiled_ticks: int
    ops: tuple[OpShare, ...]

    @property
    def outside_ms(self) -> float:
        """Of a profiled step, ms in no op: the model's own glue and the engine."""
        return self.profiled_step_ms - sum(op.ms for op in self.ops)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outside_ms": self.outside_ms}


def capture(
    family: ModelFamily, *, sessions: int, ticks: int, seed: int, threads: int, trace: Path
) -> Capture:
    """Runs `ticks` ticks flat out as they are, then some of them again under the profiler.

    trace: where the profiler's own trace goes (Chrome format, .json).
    """
    noise = np.random.default_rng(seed)
    with Runtime(
        model=family, max_sessions=sessions, seed=seed, threads=threads, clock=FastClock()
    ) as runtime:
        opened = [runtime.open(seed=seed + i) for i in range(sessions)]
        for _ in range(ticks):
            _tick(runtime, opened, noise)
        summary = runtime.summary()
        profiled = min(ticks, MOST_PROFILED_TICKS)
        with op_ranges():
            with profile(activities=[ProfilerActivity.CPU]):  # its first use is slow
                _tick(runtime, opened, noise)
            steps = []
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                for _ in range(profiled):
                    with record_function("tick"):
                        steps.append(_tick(runtime, opened, noise))
        profiler.export_chrome_trace(str(trace))
    step_ms = sum(steps) / profiled
    return Capture(
        phases={phase: summary[f"{phase}_ms"] for phase in PHASES},
        step_ms=summary["step_ms"]["p50"],
        profiled_step_ms=step_ms,
        profiled_ticks=profiled,
        ops=tuple(
            OpShare(
                op=op,
                calls=total.calls / profiled,
                ms=total.us / 1000 / profiled,
                torch_calls=total.torch_calls / profiled,
                share=total.us / 1000 / profiled / step_ms,
            )
            for op, total in totals(profiler.events() or ()).items()
        ),
    )


def _tick(runtime: Runtime, sessions: list[Session], noise: np.random.Generator) -> float:
    """One tick of every session; its step in ms."""
    shape = runtime.family.shape
    for session in sessions:
        heard = NOISE_RMS * noise.standard_normal(shape.input_samples)
        session.push_audio(np.clip(heard, -1, 1), shape.input_rate)
    runtime.tick()
    outputs = [session.poll() for session in sessions]
    if outputs[0] is None:
        raise RuntimeError(f"a session made no output: {sessions[0].closed_reason}")
    return outputs[0].step_ms
