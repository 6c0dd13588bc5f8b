"""The `tick` suite: whole ticks of the runtime, every session live, on a real clock or flat out.

Rows add to schema 1: step_ms_p50, step_ms_p99, step_ms_p999, step_ms_max (the model's part of a
tick), ticks (that were due), misses (those out after their deadline, and grid points skipped
because a tick ran over them), miss_rate_upper95 (one-sided, exact), sessions, slack_ms_min,
wake_ms_p99, clock. The us_ fields are the step again. The run begins with a check that a session's
outputs are the same bits alone and among others; without it nothing is timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microturn.bench import schema
from microturn.bench.machine import meta
from microturn.runtime.cli.audio import Recording, Samples
from microturn.runtime.cli.converse import Player, Script, play_fast, play_real
from microturn.runtime.cli.report import spread

if TYPE_CHECKING:
    from microturn.model.family import ModelFamily
    from microturn.runtime import Output, Runtime

CHECK_TICKS = 4
CHECK_SESSIONS = 3
NOISE_SECONDS = 10
NOISE_RMS = 0.05


class CheckFailed(RuntimeError):
    """The correctness check that goes before the timing did not pass."""


@dataclass(frozen=True)
class TickRun:
    """One measurement. recording: looped over the run; None for seeded noise."""

    family: ModelFamily
    preset: str
    ticks: int
    sessions: int
    realtime: bool
    seed: int
    threads: int
    recording: Recording | None = None

    @property
    def case(self) -> str:
        return f"preset={self.preset},S={self.sessions},tick_ms={self.family.shape.tick_ms}"

    def runtime(self, sessions: int, *, realtime: bool) -> Runtime:
        """A warm runtime whose clock does not run yet."""
        from microturn.runtime import FastClock, RealClock, Runtime
        from microturn.runtime.lateness import COUNT_ONLY

        return Runtime(
            model=self.family,
            tick_ms=self.family.shape.tick_ms,
            input_queue_ms=max(500, 5 * self.family.shape.tick_ms),
            max_sessions=sessions,
            admission="slots",
            seed=self.seed,
            threads=self.threads,
            clock=RealClock() if realtime else FastClock(),
            lateness=COUNT_ONLY,
            start=False,
        )

    def script(self, ticks: int) -> Script:
        """What every session hears."""
        shape = self.family.shape
        samples = np.resize(self._samples(), ticks * shape.input_samples)
        return Script(samples, shape.input_samples, shape.tick_ms, ticks)

    def _samples(self) -> Samples:
        rate = self.family.shape.input_rate
        if self.recording is None:
            noise = np.random.default_rng(self.seed).standard_normal(NOISE_SECONDS * rate)
            return np.clip(NOISE_RMS * noise, -1, 1).astype(np.float32)
        if self.recording.rate == rate:
            return self.recording.samples
        import soxr

        heard = soxr.resample(self.recording.samples, self.recording.rate, rate)
        return np.asarray(np.clip(heard, -1, 1), np.float32)


def check(run: TickRun) -> None:
    """A session alone and among others gives the same bits. Raises CheckFailed."""
    alone, among = _outputs(run, 1), _outputs(run, CHECK_SESSIONS)
    for k, (one, other) in enumerate(zip(alone, among, strict=True)):
        for what, a, b in (("codes", one.codes, other.codes), ("audio", one.audio, other.audio)):
            if a.tobytes() != b.tobytes():
                raise CheckFailed(f"{what} of tick {k} differ alone and among {CHECK_SESSIONS}")
        if not np.isfinite(one.audio).all():
            raise CheckFailed(f"audio of tick {k} is not finite")


def _outputs(run: TickRun, sessions: int) -> list[Output]:
    """The first session's outputs of a short run beside others of other seeds."""
    kept: list[Output] = []
    with run.runtime(sessions, realtime=False) as runtime:
        players = [
            Player(
                runtime.open(seed=run.seed + index),
                run.script(CHECK_TICKS),
                kept.append if index == 0 else _ignore,
            )
            for index in range(sessions)
        ]
        play_fast(runtime, players)
    return kept


def measure(run: TickRun, watch: Callable[[Output], None]) -> dict[str, Any]:
    """The row of this run; `watch` gets the first session's outputs as they come."""
    step_ms: list[float] = []

    def keep(output: Output) -> None:
        step_ms.append(output.step_ms)
        watch(output)

    play = run.script(run.ticks)
    with run.runtime(run.sessions, realtime=run.realtime) as runtime:
        players = [
            Player(runtime.open(seed=run.seed + i), play, keep if i == 0 else _ignore)
            for i in range(run.sessions)
        ]
        (play_real if run.realtime else play_fast)(runtime, players)
        summary = runtime.summary()
    step_us = spread([ms * 1000 for ms in step_ms], "us", (20, 50, 80))
    heard = "seeded noise" if run.recording is None else "a recording, looped"
    return {
        "op": "tick",
        "case": run.case,
        "dtype": "fp32",
        "provider": "microturn",
        **step_us,
        **spread(step_ms, "step_ms", (50, 99, 99.9)),
        "step_ms_max": round(max(step_ms), 3),
        "ticks": summary["ticks"] + summary["skipped_ticks"],
        "misses": summary["misses"] + summary["skipped_ticks"],
        "miss_rate_upper95": summary["miss_rate_upper95"],
        "sessions": run.sessions,
        "slack_ms_min": round(summary["slack_ms_min"], 3),
        "wake_ms_p99": summary["wake_ms"]["p99"],
        "clock": "real" if run.realtime else "fast",
        "note": f"hears {heard}; "
        + ("trained" if run.family.trained else "untrained")
        + " weights",
    }


def _ignore(output: Output) -> None:
    pass


def document(run: TickRun, watch: Callable[[Output], None]) -> dict[str, Any]:
    """Checks, then measures: a document of the `tick` suite. Raises CheckFailed."""
    before = meta(threads=run.threads)
    before["load_1min_before"] = round(os.getloadavg()[0], 2)
    check(run)
    return schema.document("tick", before, [measure(run, watch)])
