"""What happened, counted exactly, and how long it took, as histograms. No torch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hdrh.histogram import HdrHistogram
from prometheus_client import CollectorRegistry, Histogram, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from microturn.runtime.bounds import upper95
from microturn.runtime.machine import rss_bytes
from microturn.runtime.nvml import REASONS, GpuSensor

PHASES = ("wake", "gather", "plan", "step", "emit", "slack")
MAX_US = 60_000_000
MAX_EXPERTS = 10_000_000
BUCKETS_S = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class TickTiming:
    """One tick, in ns.

    wake     how late the tick began after its due time
    gather, plan, step, emit  time spent, by the machine's clock
    slack    deadline minus the moment the outputs were made, by the runtime's clock: the same
             number that the outputs carry
    """

    wake: int
    gather: int
    plan: int
    step: int
    emit: int
    slack: int


class Metrics:
    """Counts and histograms of one runtime.

    A batch tick is one that stepped at least one session; only they can miss. A miss is a batch
    tick whose outputs were made after its deadline. Skipped ticks are grid points that passed while
    another tick ran. Outputs that were caught up count as session ticks, not as batch ticks. Rates
    and their bounds are of batch ticks and skipped ones together: a skipped tick gave nobody
    anything in time.
    """

    def __init__(self, gpu: GpuSensor | None = None) -> None:
        """gpu: looked at when somebody asks for a summary or a scrape, never by a tick."""
        self._lock = threading.Lock()
        self._gpu = gpu
        self.watchers: tuple[Callable[[TickTiming, int], object], ...] = ()
        """Told of every batch tick and its sessions, by the thread that ticks; must not raise."""
        self.graph_misses: Callable[[], int] = lambda: 0
        """Ticks that no captured graph held: the engine counts them, and each is an error."""
        self._hdr: dict[str, Any] = {name: HdrHistogram(1, MAX_US, 3) for name in PHASES}
        self._hdr_experts: Any = HdrHistogram(1, MAX_EXPERTS, 3)
        self.experts_touched = 0
        self._min_slack_ns: int | None = None
        self.idle_ticks = 0
        self.batch_ticks = 0
        self.misses = 0
        self.skipped_ticks = 0
        self.failed_steps = 0
        self.degraded = 0
        self.caught_up_session_ticks = 0
        self.session_ticks = 0
        self.late_session_ticks = 0
        self.inserted_silence_ms = 0.0
        self.dropped_ms = 0.0
        self.sessions_open = 0
        self.sessions_opened = 0
        self.sessions_refused: Counter[str] = Counter()
        self.missed_session_ticks = 0
        self.sessions_closed: Counter[str] = Counter()
        self.registry = CollectorRegistry()
        self._phases = Histogram(
            "microturn_tick_seconds",
            "Time of a tick by phase; slack below zero counts as zero",
            ["phase"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._observe = {name: self._phases.labels(name).observe for name in PHASES}
        self.registry.register(_Counts(self))

    def tick(self, timing: TickTiming, sessions: int, experts: int = 0) -> None:
        """A batch tick that was emitted to so many sessions and read the weights of so many
        experts: distinct ones of each pass and layer.
        """
        late = timing.slack < 0
        with self._lock:
            self.batch_ticks += 1
            self.misses += late
            self.session_ticks += sessions
            self.late_session_ticks += sessions if late else 0
            if self._min_slack_ns is None or timing.slack < self._min_slack_ns:
                self._min_slack_ns = timing.slack
            self.experts_touched += experts
            if experts:
                self._hdr_experts.record_value(min(experts, MAX_EXPERTS))
            for name in PHASES:
                us = getattr(timing, name) // 1000
                self._hdr[name].record_value(min(max(us, 0), MAX_US))
        for name, observe in self._observe.items():
            observe(max(0, getattr(timing, name)) / 1e9)
        for watch in self.watchers:
            watch(timing, sessions)

    def caught_up(self, sessions: int, late: bool) -> None:
        """So many sessions got an output more from a tick than its own."""
        with self._lock:
            self.caught_up_session_ticks += sessions
            self.session_ticks += sessions
            self.late_session_ticks += sessions if late else 0

    def opened(self) -> None:
        with self._lock:
            self.sessions_open += 1
            self.sessions_opened += 1

    def refused(self, reason: str) -> None:
        """A session was not admitted: for want of "slots", "time" or "memory"."""
        with self._lock:
            self.sessions_refused[reason] += 1

    def closed(
        self, code: str, *, dropped_ms: float, inserted_silence_ms: float, missed_ticks: int
    ) -> None:
        """A session ended, after so much dropped input and inserted silence, so many ticks behind
        the clock.
        """
        with self._lock:
            self.sessions_open -= 1
            self.sessions_closed[code] += 1
            self.dropped_ms += dropped_ms
            self.inserted_silence_ms += inserted_silence_ms
            self.missed_session_ticks += missed_ticks

    def summary(self) -> dict[str, Any]:
        """Counts, rates with their 95 % upper bound, and p50, p90, p99, p999 and max in ms.

        Dropped input, inserted silence and missed session ticks are of sessions that have ended;
        memory and GPU as they are now.
        """
        gpu = self._gpu.sample() if self._gpu is not None else None
        with self._lock:
            trials = self.batch_ticks + self.skipped_ticks
            missed = self.misses + self.skipped_ticks
            slack = self._min_slack_ns
            return {
                "ticks": self.batch_ticks,
                "idle_ticks": self.idle_ticks,
                "misses": self.misses,
                "skipped_ticks": self.skipped_ticks,
                "failed_steps": self.failed_steps,
                "miss_rate": missed / trials if trials else 0.0,
                "miss_rate_upper95": upper95(missed, trials) if trials else 1.0,
                "session_ticks": self.session_ticks,
                "late_session_ticks": self.late_session_ticks,
                "caught_up_session_ticks": self.caught_up_session_ticks,
                "experts_touched": self.experts_touched,
                "experts_touched_per_tick": _quantiles(self._hdr_experts, 1),
                "degraded": self.degraded,
                "sessions_open": self.sessions_open,
                "sessions_opened": self.sessions_opened,
                "sessions_refused": self.sessions_refused.total(),
                "sessions_refused_for": dict(self.sessions_refused),
                "sessions_closed": dict(self.sessions_closed),
                "dropped_ms": self.dropped_ms,
                "inserted_silence_ms": self.inserted_silence_ms,
                "missed_session_ticks": self.missed_session_ticks,
                "rss_bytes": rss_bytes(),
                "gpu": None if gpu is None else asdict(gpu),
                "slack_ms_min": None if slack is None else slack / 1e6,
                **{f"{name}_ms": _quantiles(self._hdr[name], 1000) for name in PHASES},
            }

    def prometheus(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def serve(self, port: int, address: str) -> tuple[int, Callable[[], None]]:
        """Answers scrapes from a thread of its own: the port (a free one for 0), and what stops
        it. Raises OSError when the port is taken.
        """
        server, thread = start_http_server(port, addr=address, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return int(server.server_port), stop


def _quantiles(hdr: Any, unit: int) -> dict[str, float]:
    if not hdr.get_total_count():
        return {}
    points = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9}
    found = {name: hdr.get_value_at_percentile(at) / unit for name, at in points.items()}
    return {**found, "max": hdr.get_max_value() / unit}


class _Counts:
    """The exact counts as Prometheus metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        m = self._metrics
        for name, text, value in (
            ("ticks", "Ticks that stepped at least one session", m.batch_ticks),
            ("missed_deadlines", "Batch ticks that ended after their deadline", m.misses),
            ("skipped_ticks", "Grid points that passed during another tick", m.skipped_ticks),
            ("failed_steps", "Steps that raised", m.failed_steps),
            ("graph_misses", "Ticks that no captured graph held", m.graph_misses()),
            ("session_ticks", "Outputs made", m.session_ticks),
            ("late_session_ticks", "Outputs made after their deadline", m.late_session_ticks),
            ("degraded", "Times a session's old input was dropped for lateness", m.degraded),
            ("caught_up_session_ticks", "Outputs of skipped ticks", m.caught_up_session_ticks),
            (
                "experts_touched",
                "Distinct experts read, of each tick, pass and layer",
                m.experts_touched,
            ),
            ("sessions_opened", "Sessions admitted", m.sessions_opened),
            (
                "missed_session_ticks",
                "Ticks that passed without a session, ended sessions",
                m.missed_session_ticks,
            ),
            ("dropped_input_seconds", "Audio dropped, ended sessions", m.dropped_ms / 1e3),
            (
                "inserted_silence_seconds",
                "Audio missing, ended sessions",
                m.inserted_silence_ms / 1e3,
            ),
        ):
            yield CounterMetricFamily(f"microturn_{name}", text, value=value)
        yield GaugeMetricFamily("microturn_sessions", "Sessions open", value=m.sessions_open)
        for name, text, counts in (
            ("closed", "Sessions ended, by reason", m.sessions_closed),
            ("refused", "Sessions not admitted, by what was short", m.sessions_refused),
        ):
            family = CounterMetricFamily(f"microturn_sessions_{name}", text, labels=["reason"])
            for reason, count in list(counts.items()):
                family.add_metric([reason], count)
            yield family
        yield _gauge("memory_bytes", "Memory of this process that is in RAM", rss_bytes())
        gpu = m._gpu.sample() if m._gpu is not None else None
        if gpu is not None:
            yield _gauge("gpu_power_watts", "Power drawn", gpu.power_w)
            yield _gauge("gpu_sm_hertz", "Clock of the multiprocessors", gpu.sm_mhz * 1e6)
            yield _gauge("gpu_memory_hertz", "Clock of the memory", gpu.memory_mhz * 1e6)
            yield _gauge("gpu_memory_used_bytes", "Memory in use by everybody", gpu.used_bytes)
            held = GaugeMetricFamily(
                "microturn_gpu_held_back", "1 where clocks are held back", labels=["reason"]
            )
            for reason in REASONS:
                held.add_metric([reason], float(reason in gpu.held_back_by))
            yield held


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"microturn_{name}", text, value=value)
