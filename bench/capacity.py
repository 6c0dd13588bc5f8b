"""The `capacity` suite: the most sessions that this machine holds at a tick and a miss rate.

Sessions hear paced audio and their windows are full from the start, as they are once a session is
old. First ticks run flat out at 1, 2, 4 ... sessions, then between the last number that fits and
the first that does not: it fits when 99 of 100 ticks end a margin before the period does. Then the
real clock confirms: the number holds when its misses are no more than the miss rate allows; if not,
one less is tried. A row for each number measured adds to schema 1:

step_ms_p50, step_ms_p99, step_ms_p999, step_ms_max (the model's part of a tick), took_ms_p50 and
took_ms_p99 (from when a tick was due until its outputs were out), ticks (grid points with
sessions), misses (late or skipped), miss_rate_upper95 (one-sided, exact), sessions, clock (fast or
real; a run on the real clock ends as soon as it has missed too many ticks), holds, slack_ms_min,
wake_ms_p99, ended (sessions that ended by themselves); busy_ms_p50 and busy_ms_p99 (a tick from its
beginning until its outputs were out), and what admission says of the same: predicted_ms_p50 and
predicted_ms_p99 from what was measured before this row, null before anything was; fitted_ms_p50 and
fitted_ms_p99 from all rows. meta.capacity is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from microturn.bench import schema
from microturn.bench.system import System, Told, join
from microturn.bench.traffic import MS, Traffic, counts, step_times
from microturn.runtime.admission import Load, TickPredictor
from microturn.runtime.cli.report import spread

Row = dict[str, Any]


class Effort(NamedTuple):
    """Ticks on the real clock, and flat out at each number."""

    ticks: int
    probe_ticks: int


QUICK = Effort(300, 60)

LOOK_EVERY = 50
"""Ticks on the real clock between two looks at what was missed."""


def document(
    system: System,
    *,
    ticks: int,
    probe_ticks: int,
    most: int,
    miss_rate: float,
    margin_ms: float,
    confirm: bool = True,
    told: Told = lambda line: None,
) -> dict[str, Any]:
    """Finds it, without the real clock's confirmation where `confirm` is not set."""
    meta = {**system.meta(), "miss_rate": miss_rate, "margin_ms": margin_ms}
    fast: dict[int, Row] = {}
    seen = TickPredictor(system.amounts, now=lambda: 0)

    def fits(sessions: int) -> bool:
        if sessions not in fast:
            told(f"{sessions} sessions: {probe_ticks} ticks flat out ...")
            fast[sessions] = probe(system, sessions, probe_ticks, margin_ms, seen)
            told(line(fast[sessions]))
        return bool(fast[sessions]["holds"])

    largest = bisect(fits, most)
    real: list[Row] = []
    for sessions in range(largest, 0, -1) if confirm else ():
        told(
            f"{sessions} sessions: {ticks * system.tick_ms / 1000:.0f} s on the real clock, "
            f"less if ticks are missed ..."
        )
        row = confirmed(system, sessions, ticks, miss_rate, seen)
        told(line(row))
        real.append(row)
        if row["holds"]:
            break
    for row in (*fast.values(), *real):
        row |= _said(seen, Load(row["sessions"], row["sessions"] * system.rows), "fitted")
    rows = [*(fast[n] for n in sorted(fast)), *real]
    answer = (real[-1]["sessions"] if real and real[-1]["holds"] else 0) if confirm else largest
    meta["capacity"] = answer
    return schema.document("capacity", meta, rows)


def bisect(fits: Callable[[int], bool], most: int) -> int:
    """The largest n of 1..most that fits, 0 for none; what fits is taken to fit with fewer."""
    low, high, step = 0, most + 1, 1
    while low < most:
        n = min(low + step, most)
        if not fits(n):
            high = n
            break
        low, step = n, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def probe(system: System, sessions: int, ticks: int, margin_ms: float, seen: TickPredictor) -> Row:
    """Ticks flat out, by hand."""
    row = _measured(system, sessions, ticks, seen, real=False)
    row["holds"] = row["busy_ms_p99"] + margin_ms <= system.tick_ms and not row["ended"]
    return row


def confirmed(
    system: System, sessions: int, ticks: int, miss_rate: float, seen: TickPredictor
) -> Row:
    """The same on the real clock."""
    most = int(miss_rate * ticks)
    row = _measured(system, sessions, ticks, seen, real=True, most=most)
    row["holds"] = row["misses"] <= miss_rate * row["ticks"] and not row["ended"]
    return row


def _measured(
    system: System,
    sessions: int,
    ticks: int,
    seen: TickPredictor,
    *,
    real: bool,
    most: int | None = None,
) -> Row:
    """most: misses after which the run has shown what it can."""
    load = Load(sessions, sessions * system.rows)
    foreseen = _said(seen, load, "predicted")
    traffic = system.traffic(sessions, real=real)
    with traffic.runtime as runtime:
        aged = join(traffic, sessions, seed=system.seed, aged=True)
        traffic.turn()
        runtime.tick()
        traffic.turn()
        traffic.begin()
        first, before = len(traffic.steps), traffic.mark()
        if most is None:
            traffic.run_ticks(ticks)
        else:
            _run_until_missed(traffic, ticks, most)
        busy = [ns for _, ns in runtime.foresight.predictor.ticks(sessions)][-ticks:]
        for ns in busy:
            seen.observe(load, ns)
        clock, steps = "real" if real else "fast", traffic.steps[first:]
        return {
            **system.row("capacity", system.case(sessions, clock=clock)),
            **step_times(steps),
            **counts(before, traffic.mark()),
            **spread([ns / MS for ns in busy], "busy_ms", (50, 99)),
            **foreseen,
            "sessions": sessions,
            "clock": clock,
            "slack_ms_min": round(system.tick_ms - max(step.took_ms for step in steps), 3),
            "wake_ms_p99": runtime.summary()["wake_ms"]["p99"],
            "ended": len(traffic.finished),
            "note": "hears seeded noise, windows full" if aged else "hears seeded noise",
        }


def _run_until_missed(traffic: Traffic, ticks: int, most: int) -> None:
    """So many ticks, or fewer when more than `most` were missed before."""
    before, left = traffic.mark(), ticks
    while left > 0:
        traffic.run_ticks(min(left, LOOK_EVERY))
        left -= LOOK_EVERY
        if counts(before, traffic.mark())["misses"] > most:
            return


def _said(seen: TickPredictor, load: Load, name: str) -> Row:
    p50, p99 = seen.p50(load), seen.p99(load)
    return {
        f"{name}_ms_p50": p50 and round(p50 / MS, 3),
        f"{name}_ms_p99": p99 and round(p99 / MS, 3),
    }


def line(row: Row) -> str:
    """What a person sees while it runs."""
    return (
        f"{row['sessions']} sessions, {row['clock']} clock: ticks p50 {row['busy_ms_p50']:.1f} ms, "
        f"p99 {row['busy_ms_p99']:.1f} ms, {row['misses']} of {row['ticks']} missed: "
        f"{'holds' if row['holds'] else 'too many'}"
    )
