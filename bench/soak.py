"""The `soak` suite: sessions that stay, for minutes on the real clock, and what grows with age.

A row for each minute and one for all:

step_ms_p50, step_ms_p99, step_ms_p999, step_ms_max, took_ms_p50 and took_ms_p99 (from when a tick
was due until its outputs were out), ticks, misses, miss_rate_upper95, session_ticks,
late_session_ticks, sessions, rss_mb (of the process, at the end); on the last row also head_ms_p50
and tail_ms_p50 (steps of the first minute after the windows were full, and of the last one),
step_ratio (tail over head as they are), host_ratio (the same of a small fixed work that is timed
once a second beside the sessions, see yardstick.py; null where the steps run on a GPU),
tail_over_head = step_ratio / host_ratio: what is left when the host itself became slower or faster;
rss_mb_head, rss_growth_mb (from then until the end), drift_ms_max (how far the media time of a
session fell behind the clock), ended (sessions that ended by themselves), missed_pushes (audio that
the clients themselves did not push in time) and holds: nothing missed or ended, and tail_over_head
at most `MOST_TAIL`.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from statistics import median
from typing import Any, NamedTuple

from microturn.bench import schema
from microturn.bench.system import System, Told, join, seconds
from microturn.bench.traffic import Mark, Step, Traffic, counts, step_times
from microturn.bench.yardstick import Yardstick
from microturn.runtime.machine import rss_bytes

MOST_TAIL = 1.05
"""Cost is flat with age when the last minute's median step exceeds the first one's by no more, the
host's own change of speed taken out.
"""

SPAN_S = 60.0

Row = dict[str, Any]


class _Minute(NamedTuple):
    mark: Mark
    steps: int
    rss: int


def document(
    system: System,
    *,
    sessions: int,
    minutes: float,
    told: Told = lambda line: None,
    host: Yardstick | None = None,
) -> dict[str, Any]:
    """host: in place of the usual one. Raises ValueError when the run is over before there is a
    head and a tail to compare.
    """
    warm = system.window_ticks * system.tick_ms / 1000
    span = min(SPAN_S, 60 * minutes / 4)
    if warm + 2 * span > 60 * minutes:
        raise ValueError(
            f"windows are full after {warm:.0f} s: {minutes:g} minutes leave no time to compare "
            f"later steps with; take at least {(warm + 2 * span) / 60:.1f}"
        )
    meta = system.meta()
    if host is None and system.device == "cpu":
        host = Yardstick()
    traffic = system.traffic(sessions, real=True)
    with traffic.runtime as runtime:
        join(traffic, sessions, seed=system.seed, aged=False)
        traffic.begin()
        began = runtime.clock.now()
        seen = [_now(traffic)]
        for minute in range(1, ceil(minutes) + 1):
            traffic.run(began + seconds(60 * min(minute, minutes)), host or _nothing)
            seen.append(_now(traffic))
            told(_line(minute, traffic, seen))
        rows = [
            _row(system, traffic, sessions, list(pair), minute=minute)
            for minute, pair in enumerate(pairwise(seen), 1)
        ]
        rows.append(_total(system, traffic, sessions, seen, warm, span, host))
        traffic.hang_up()
    return schema.document("soak", meta, rows)


def _now(traffic: Traffic) -> _Minute:
    return _Minute(traffic.mark(), len(traffic.steps), rss_bytes())


def _row(
    system: System, traffic: Traffic, sessions: int, seen: list[_Minute], *, minute: int | str
) -> Row:
    first, last = seen[0], seen[-1]
    return {
        **system.row("soak", system.case(sessions, minute=minute)),
        **step_times(traffic.steps[first.steps : last.steps]),
        **counts(first.mark, last.mark),
        "sessions": sessions,
        "rss_mb": round(last.rss / 1e6, 1),
    }


def _total(
    system: System,
    traffic: Traffic,
    sessions: int,
    seen: list[_Minute],
    warm: float,
    span: float,
    host: Yardstick | None,
) -> Row:
    row = _row(system, traffic, sessions, seen, minute="all")
    ticks = int(span * 1000 / system.tick_ms)
    head, tail = head_and_tail(traffic.steps, system.window_ticks, ticks)
    full = next((k for k in range(1, len(seen)) if 60 * k >= warm), len(seen) - 1)
    clients = [*traffic.clients, *traffic.finished]
    steps = tail / head if head else 1.0
    hosts = _host_ratio(host, warm, span)
    ratio = steps / (hosts or 1.0)
    row |= {
        "head_ms_p50": round(head, 3),
        "tail_ms_p50": round(tail, 3),
        "step_ratio": round(steps, 4),
        "host_ratio": hosts and round(hosts, 4),
        "tail_over_head": round(ratio, 4),
        "rss_mb_head": round(seen[full].rss / 1e6, 1),
        "rss_growth_mb": round((seen[-1].rss - seen[full].rss) / 1e6, 1),
        "drift_ms_max": round(max(client.drift_ms for client in clients), 3),
        "ended": len(traffic.finished),
        "missed_pushes": sum(client.missed_pushes for client in clients),
        "holds": not row["misses"] and not traffic.finished and ratio <= MOST_TAIL,
        "note": "hears seeded noise, "
        + ("trained" if system.trained else "untrained")
        + " weights; head is the first minute after the windows were full",
    }
    return row


def head_and_tail(steps: list[Step], skip: int, span: int) -> tuple[float, float]:
    """Median step in ms: of the `span` ticks after `skip`, and of the last `span`."""
    first = steps[0].tick + skip
    head = [step.ms for step in steps if first <= step.tick < first + span]
    return median(head), median(step.ms for step in steps[-span:])


def _host_ratio(host: Yardstick | None, warm: float, span: float) -> float | None:
    """Tail over head of the host's own work, over the same times as the steps."""
    if host is None or not host.samples:
        return None
    first, last = host.samples[0].at + seconds(warm), host.samples[-1].at
    head, tail = host.ms(first, first + seconds(span)), host.ms(last - seconds(span), last)
    return tail / head if head and tail else None


def _nothing(now: int) -> None:
    """There is no host to look at."""


def _line(minute: int, traffic: Traffic, seen: list[_Minute]) -> str:
    row = {
        **step_times(traffic.steps[seen[-2].steps : seen[-1].steps]),
        **counts(seen[-2].mark, seen[-1].mark),
    }
    return (
        f"minute {minute}: step p50 {row.get('step_ms_p50', 0):.1f} ms, p99 "
        f"{row.get('step_ms_p99', 0):.1f} ms, {row['misses']} of {row['ticks']} ticks missed, "
        f"{seen[-1].rss / 1e6:.0f} MB"
    )
