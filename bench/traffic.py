"""Sessions as clients make them: audio paced in real time, and what comes of it, counted.

A client pushes the audio of a tick when its time has come. One that could not (its thread slept)
never makes up for it in a burst: what it missed is left out, counted as `missed_pushes`, and heard
as silence. Works on a running clock and, ticking by hand, on one that is driven.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from microturn.runtime.bounds import upper95
from microturn.runtime.cli.audio import Samples
from microturn.runtime.cli.report import spread

if TYPE_CHECKING:
    from microturn.runtime import Runtime, Session

MS = 1_000_000
POLL_SECONDS = 0.004
SETTLE_TICKS = 20
NOISE_SECONDS = 10
NOISE_RMS = 0.05


class Heard(NamedTuple):
    """What clients say, a tick of samples at a time."""

    samples: Samples
    per_tick: int

    def piece(self, index: int) -> Samples:
        """[per_tick]; the recording loops."""
        ticks = len(self.samples) // self.per_tick
        start = (index % ticks) * self.per_tick
        return self.samples[start : start + self.per_tick]


def noise(rate: int, per_tick: int, seed: int) -> Heard:
    """Seeded noise."""
    made = np.random.default_rng(seed).standard_normal(NOISE_SECONDS * rate)
    return Heard(np.clip(NOISE_RMS * made, -1, 1).astype(np.float32), per_tick)


@dataclass(eq=False)
class Client:
    """One admitted session and its owner. begins, until: ns on the runtime's clock."""

    session: Session
    heard: Heard
    period: int
    begins: int
    until: int
    offset: int
    ticks: int = 0
    late: int = 0
    late_in_a_row: int = 0
    worst_run: int = 0
    missed_pushes: int = 0
    first_ms: float | None = None
    drift_ms: float = 0.0
    closed: str | None = None
    _next: int = 0
    _first: tuple[int, int] | None = None

    @property
    def missed_ticks(self) -> int:
        """Ticks that passed without it."""
        return self.session.stats.missed_ticks

    @property
    def over(self) -> bool:
        return self.closed is not None

    def begin_anew(self) -> None:
        """What was counted until now is forgotten."""
        self.missed_pushes = self.ticks = self.late = self.late_in_a_row = self.worst_run = 0
        self._first = None

    def feed(self, now: int) -> None:
        """Pushes what is due; ends the session when its time is over."""
        if self.over:
            return
        reason = self.session.closed_reason
        if reason is not None:
            self.closed = str(reason.code)
        elif now >= self.until:
            self.session.close()
            self.closed = "done"
        else:
            self._push((now - self.begins) // self.period)

    def collect(self, now: int, watch: Callable[[Any], None]) -> None:
        """Takes the outputs that wait."""
        while (output := self.session.poll()) is not None:
            self.ticks += 1
            self.late += output.late
            self.late_in_a_row = self.late_in_a_row + 1 if output.late else 0
            self.worst_run = max(self.worst_run, self.late_in_a_row)
            if self._first is None:
                self._first = now, output.start_ms
                self.first_ms = (now - self.begins) / MS
            since, media = self._first
            behind = (now - since) / MS - (output.start_ms - media)
            self.drift_ms = behind
            watch(output)

    def _push(self, due: int) -> None:
        """One piece a turn at most, so a client that was held up is late for less than a tick, or
        leaves out what it has missed.
        """
        behind = due - self._next
        if behind < 0:
            return
        if behind > 1:
            self.missed_pushes += behind - 1
            self._next += behind - 1
        rate = self.heard.per_tick * 1000 * MS // self.period
        self.session.push_audio(self.heard.piece(self.offset + self._next), rate)
        self._next += 1


class Mark(NamedTuple):
    """Counters of a runtime at one moment."""

    batch_ticks: int
    misses: int
    skipped: int
    session_ticks: int
    late_session_ticks: int


class Step(NamedTuple):
    """One tick that gave somebody something."""

    tick: int
    ms: float
    took_ms: float


@dataclass
class Traffic:
    """The clients of one runtime, and the step of every tick that gave them something.

    steps     of every tick: its index, its step in ms, and the ms from when it was due until its
              outputs were out
    """

    runtime: Runtime
    heard: Heard
    clients: list[Client] = field(default_factory=list)
    finished: list[Client] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def period(self) -> int:
        return self.runtime.config.tick_ms * MS

    def begin(self) -> None:
        """Starts the clock's thread, where there is one, and lets it settle: making a runtime's
        objects permanent takes longer than a tick, once.
        """
        if not self.runtime.clock.by_hand:
            self.runtime.start()
            self.run_ticks(SETTLE_TICKS)
            for client in self.clients:
                client.begin_anew()

    def open(self, until: int, seed: int) -> Client:
        """Raises RuntimeFull."""
        session = self.runtime.open(seed=seed)
        now = self.runtime.clock.now()
        client = Client(session, self.heard, self.period, now, until, offset=seed)
        client.feed(now)
        self.clients.append(client)
        return client

    def turn(self) -> None:
        """Clients push and read; those whose session ended are put aside."""
        now = self.runtime.clock.now()
        for client in self.clients:
            client.feed(now)
            client.collect(now, self._watch)
        ended = [client for client in self.clients if client.over]
        for client in ended:
            client.collect(now, self._watch)
            self.clients.remove(client)
        self.finished += ended

    def run(self, until: int, each: Callable[[int], None] = lambda now: None) -> None:
        """Until that time on the runtime's clock; `each` is called at every turn."""
        clock = self.runtime.clock
        while (now := clock.now()) < until:
            each(now)
            self.turn()
            if clock.by_hand:
                self.runtime.tick()
            else:
                time.sleep(POLL_SECONDS)
        self.turn()

    def run_ticks(self, ticks: int) -> None:
        """As long as so many ticks take on a clock; by hand, exactly so many."""
        if not self.runtime.clock.by_hand:
            self.run(self.runtime.clock.now() + ticks * self.period)
            return
        for _ in range(ticks):
            self.turn()
            self.runtime.tick()
        self.turn()

    def hang_up(self) -> None:
        """Every session is closed by its owner."""
        for client in self.clients:
            client.until = 0
        self.turn()

    def mark(self) -> Mark:
        m = self.runtime.metrics
        return Mark(m.batch_ticks, m.misses, m.skipped_ticks, m.session_ticks, m.late_session_ticks)

    def _watch(self, output: Any) -> None:
        if not self.steps or output.tick > self.steps[-1][0]:
            took = self.runtime.config.tick_ms - output.slack_ms
            self.steps.append(Step(output.tick, output.step_ms, took))


def counts(before: Mark, after: Mark) -> dict[str, Any]:
    """Between two marks: grid points with sessions, those whose outputs were late or never made,
    the bound of that rate, and the same of session ticks.
    """
    ticks, misses, skipped, made, late = (b - a for a, b in zip(before, after, strict=True))
    points, missed = ticks + skipped, misses + skipped
    return {
        "ticks": points,
        "misses": missed,
        "skipped_ticks": skipped,
        "miss_rate_upper95": upper95(missed, points) if points else 1.0,
        "session_ticks": made,
        "late_session_ticks": late,
    }


def step_times(steps: Sequence[Step]) -> dict[str, Any]:
    """Percentiles of steps as every system suite states them, and of whole ticks, from when they
    were due until their outputs were out; null without a tick.
    """
    if not steps:
        return {"us_p50": None, "note": "no tick had a session"}
    ms = [step.ms for step in steps]
    return {
        **spread([1000 * value for value in ms], "us", (20, 50, 80)),
        **spread(ms, "step_ms", (50, 99, 99.9)),
        "step_ms_max": round(max(ms), 3),
        **spread([step.took_ms for step in steps], "took_ms", (50, 99)),
    }
