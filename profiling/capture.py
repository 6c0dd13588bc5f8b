"""A run to account for: ticks with and without a recorder, in turn, and what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from microturn.profiling import document
from microturn.profiling.crowd import Crowd
from microturn.profiling.ranges import op_ranges, totals
from microturn.profiling.recorder import Recorder, Tick
from microturn.profiling.sweep import sweep
from microturn.runtime import FastClock, Runtime
from microturn.runtime.ceilings import measure
from microturn.runtime.lateness import COUNT_ONLY
from microturn.runtime.nvml import gpu_sensor
from microturn.runtime.timing import timer

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily

MOST_TRACED_TICKS = 5
SWEEP_TICKS = 8
"""Held out at each number of sessions: enough for a median."""
SAMPLED_EVERY = 10


@dataclass(frozen=True)
class Asked:
    """sessions: rising; the last number is taken apart. ticks: recorded ones; as many run without
    the recorder, in turn with them. sweep_ticks: held out at each number, see `sweep`. trace: where
    the profiler's own trace goes (Chrome format, .json); None makes none.
    """

    sessions: tuple[int, ...]
    ticks: int
    sweep_ticks: int = SWEEP_TICKS
    seed: int = 0
    threads: int = 1
    trace: Path | None = None


def counts(text: str) -> tuple[int, ...]:
    """Numbers of sessions of a sweep, rising. Raises ValueError."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise ValueError(f"sessions are numbers from 1 on, such as 2 or 1,2,3, got {text!r}")
    return tuple(found)


def capture(family: ModelFamily, asked: Asked) -> dict[str, Any]:
    """The document of a run of seeded noise, flat out, windows full: see `document`."""
    ceilings = measure(timer(torch.device("cpu")))
    most = asked.sessions[-1]
    with Runtime(
        model=family,
        max_sessions=most,
        seed=asked.seed,
        threads=asked.threads,
        clock=FastClock(),
        lateness=COUNT_ONLY,
    ) as runtime:
        runtime.foresight.measure(most)
        crowd = Crowd(runtime, asked.seed)
        levels = sweep(runtime, crowd, asked.sessions, asked.sweep_ticks)
        plain, recorded, gpu = record(runtime, crowd, asked.ticks)
        traced = _trace(crowd, asked) if asked.trace is not None else {}
        return document.of_run(
            runtime,
            recorded,
            plain,
            ceilings=ceilings,
            threads=asked.threads,
            levels=levels,
            gpu=gpu,
            torch_calls=traced,
        )


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
