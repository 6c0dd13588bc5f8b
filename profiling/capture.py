"""A run to account for: ticks with and without a recorder, in turn, and what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from microturn.profiling import document
from microturn.profiling.ranges import op_ranges, totals
from microturn.profiling.recorder import Recorder, Tick
from microturn.runtime import FastClock, Runtime, Session
from microturn.runtime.ceilings import measure
from microturn.runtime.foresight import doubling
from microturn.runtime.nvml import gpu_sensor
from microturn.runtime.timing import timer

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily

MOST_TRACED_TICKS = 5
RAMP_TICKS = 8
"""At each smaller number of sessions: enough for a median."""
SAMPLED_EVERY = 10
NOISE_RMS = 0.05


@dataclass(frozen=True)
class Asked:
    """ticks: recorded ones; as many run without the recorder, in turn with them. trace: where the
    profiler's own trace goes (Chrome format, .json); None makes none.
    """

    sessions: int
    ticks: int
    seed: int = 0
    threads: int = 1
    trace: Path | None = None


def capture(family: ModelFamily, asked: Asked) -> dict[str, Any]:
    """The document of a run of seeded noise, flat out, windows full: see `document`."""
    ceilings = measure(timer(torch.device("cpu")))
    with Runtime(
        model=family,
        max_sessions=asked.sessions,
        seed=asked.seed,
        threads=asked.threads,
        clock=FastClock(),
    ) as runtime:
        crowd = Crowd(runtime, asked.seed)
        levels = [_level(runtime, crowd, n) for n in doubling(asked.sessions) if n < asked.sessions]
        crowd.grow(asked.sessions)
        foreseen = _foreseen(runtime, asked.sessions)
        plain, recorded, gpu = record(runtime, crowd, asked.ticks)
        levels.append({**foreseen, **_measured(runtime, asked.sessions)})
        traced = _trace(crowd, asked) if asked.trace is not None else {}
        return document.of_run(
            runtime,
            recorded,
            plain,
            ceilings=ceilings,
            threads=asked.threads,
            levels=[{**level, **_fitted(runtime, level["sessions"])} for level in levels],
            gpu=gpu,
            torch_calls=traced,
        )


class Crowd:
    """Sessions of a runtime driven by hand, that hear noise."""

    def __init__(self, runtime: Runtime, seed: int) -> None:
        self.runtime = runtime
        self.sessions: list[Session] = []
        self._seed = seed
        self._noise = np.random.default_rng(seed)

    def grow(self, sessions: int) -> None:
        """To so many, their windows full from then on."""
        while len(self.sessions) < sessions:
            self.sessions.append(self.runtime.open(seed=self._seed + len(self.sessions)))
        for _ in range(2):  # the first tick of a session resets it, the next is warm
            self.tick()
        self.runtime.foresight.age(range(sessions))
        self.tick()

    def tick(self) -> int:
        """One tick of every session; the ns it took, waiting apart: a clock by hand does not
        wait.
        """
        shape = self.runtime.family.shape
        for session in self.sessions:
            heard = NOISE_RMS * self._noise.standard_normal(shape.input_samples)
            session.push_audio(np.clip(heard, -1, 1), shape.input_rate)
        began = perf_counter_ns()
        self.runtime.tick()
        took = perf_counter_ns() - began
        outputs = [session.poll() for session in self.sessions]
        if outputs[0] is None:
            reason = self.sessions[0].closed_reason
            raise RuntimeError(f"a session made no output: {reason}")
        return took


def record(
    runtime: Runtime, crowd: Crowd, ticks: int, recorder: Recorder | None = None
) -> tuple[list[int], list[Tick], list[dict[str, Any]]]:
    """Ticks without a recorder and with it, in turn: ns of the plain ones, the recorded ones, and
    what the GPU said of itself meanwhile, if there is one.
    """
    recorder = recorder or Recorder(runtime)
    sensor = gpu_sensor() if runtime.config.device == "cuda" else None
    plain, samples, began = [], [], perf_counter_ns()
    for index in range(ticks):
        plain.append(crowd.tick())
        with recorder:
            took = crowd.tick()
        recorder.ticks[-1].wall = took
        if sensor is not None and index % SAMPLED_EVERY == 0 and (seen := sensor.sample()):
            samples.append({"at_ms": (perf_counter_ns() - began) / 1e6, **vars(seen)})
    return plain, recorder.ticks, samples


def _level(runtime: Runtime, crowd: Crowd, sessions: int) -> dict[str, Any]:
    """A few ticks at so many sessions, and what was predicted of them before."""
    foreseen = _foreseen(runtime, sessions)
    crowd.grow(sessions)
    for _ in range(RAMP_TICKS):
        crowd.tick()
    return {**foreseen, **_measured(runtime, sessions)}


def _foreseen(runtime: Runtime, sessions: int) -> dict[str, Any]:
    return {"sessions": sessions, **_said(runtime, sessions, "predicted")}


def _fitted(runtime: Runtime, sessions: int) -> dict[str, Any]:
    return _said(runtime, sessions, "fitted")


def _said(runtime: Runtime, sessions: int, name: str) -> dict[str, Any]:
    predictor, load = runtime.foresight.predictor, runtime.foresight.admission.load(sessions)
    p50, p99 = predictor.p50(load), predictor.p99(load)
    return {f"{name}_ms_p50": p50 and p50 / 1e6, f"{name}_ms_p99": p99 and p99 / 1e6}


def _measured(runtime: Runtime, sessions: int) -> dict[str, Any]:
    ms = np.array([ns for _, ns in runtime.foresight.predictor.ticks(sessions)]) / 1e6
    p50, p99 = np.percentile(ms, (50, 99), method="inverted_cdf")
    return {"ticks": len(ms), "measured_ms_p50": float(p50), "measured_ms_p99": float(p99)}


def _trace(crowd: Crowd, asked: Asked) -> dict[str, float]:
    """A few ticks under torch's profiler, whose own times are too slow to be believed: its trace,
    and the torch calls that each op makes in a tick.
    """
    ticks = min(asked.ticks, MOST_TRACED_TICKS)
    with op_ranges():
        with profile(activities=[ProfilerActivity.CPU]):  # its first use is slow
            crowd.tick()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(ticks):
                with record_function("tick"):
                    crowd.tick()
    profiler.export_chrome_trace(str(asked.trace))
    return {op: t.torch_calls / ticks for op, t in totals(profiler.events() or ()).items()}
