"""The `load` suite: sessions arrive whether there is room for them or not.

Arrivals are a Poisson process (seeded) of a rate that rises in stages from what keeps `sessions`
live to twice that; each asks once, stays for a random time (exponential), hears audio paced in real
time, and is refused where admission says so. Refused sessions stay in the denominator: `served` is
the part of all ticks asked for, by admitted and refused alike, that was given in time. A row for
each stage and one for all:

offered (sessions that came), admitted, refused (by reason in refused_for), ended (admitted sessions
that ended before their owner left), sessions (most live at once), ticks, misses, miss_rate_upper95,
session_ticks, late_session_ticks, worst_run (most late ticks in a row of a session), late_sessions
(admitted ones with a late tick or a skipped one), served, missed_pushes (audio the clients
themselves did not push in time), step_ms_*, took_ms_*; on the last row holds (no tick was missed,
so no admitted session was late once, and none ended before its owner left), drift_ms_max (media
time behind the clock, where a session ended) and first_ms_p50 and first_ms_p99 (from opening to the
first output).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from microturn.bench import schema
from microturn.bench.system import System, Told, seconds
from microturn.bench.traffic import Client, Mark, Traffic, counts, step_times
from microturn.runtime.cli.report import spread

Row = dict[str, Any]


class Arrival(NamedTuple):
    """When a session comes, and how long it means to stay; ns from the start."""

    at: int
    stays: int
    stage: int


def arrivals(
    *, start: float, end: float, stages: int, stage_s: float, stay_s: float, seed: int
) -> list[Arrival]:
    """Poisson arrivals that keep `start` sessions live in the first stage and `end` in the last,
    were all admitted. The first stage begins with its sessions there already.
    """
    rng = np.random.default_rng(seed)
    found = [Arrival(0, seconds(stay), 0) for stay in rng.exponential(stay_s, round(start))]
    for stage in range(stages):
        level = start + (end - start) * stage / max(1, stages - 1)
        at = 0.0
        while (at := at + rng.exponential(stay_s / level)) < stage_s:
            stay = seconds(rng.exponential(stay_s))
            found.append(Arrival(seconds(stage * stage_s + at), stay, stage))
    return sorted(found)


@dataclass
class Stage:
    """What happened while one stage lasted."""

    offered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    clients: list[Client] = field(default_factory=list)
    asked_ticks: float = 0.0
    live: int = 0
    marks: list[Mark] = field(default_factory=list)
    first_step: int = 0
    last_step: int = 0


def document(
    system: System,
    *,
    sessions: int,
    most: int,
    stages: int,
    stage_s: float,
    stay_s: float,
    told: Told = lambda line: None,
) -> dict[str, Any]:
    """sessions: what the first stage keeps live; the last keeps twice as many, if it can. most:
    slots; admission decides how many of them are used.
    """
    meta = system.meta()
    traffic = system.traffic(most, real=True, admission="predict")
    plan = arrivals(
        start=sessions,
        end=2 * sessions,
        stages=stages,
        stage_s=stage_s,
        stay_s=stay_s,
        seed=system.seed,
    )
    with traffic.runtime as runtime:
        meta["predicted"] = runtime.summary().get("predicted_ms")
        meta["predicted_sessions"] = runtime.summary().get("predicted_sessions")
        held = _play(system, traffic, plan, stages, stage_s, told)
        rows = [
            _row(system, traffic, [stage], sessions, most, stage=k) for k, stage in enumerate(held)
        ]
        rows.append(_row(system, traffic, held, sessions, most, stage="all"))
    return schema.document("load", meta, rows)


def _play(
    system: System,
    traffic: Traffic,
    plan: Sequence[Arrival],
    stages: int,
    stage_s: float,
    told: Told,
) -> list[Stage]:
    from microturn.runtime import RuntimeFull

    runtime = traffic.runtime
    traffic.begin()
    began, waiting = runtime.clock.now(), list(plan)
    total = seconds(stages * stage_s)
    held: list[Stage] = []

    def each(now: int) -> None:
        since = min(now - began, total - 1)
        while len(held) <= since * stages // total:
            held.append(Stage(marks=[traffic.mark()], first_step=len(traffic.steps)))
        while waiting and waiting[0].at <= now - began:
            arrival = waiting.pop(0)
            stage = held[-1]
            stage.offered += 1
            stays = min(arrival.stays, total - arrival.at)
            stage.asked_ticks += stays / traffic.period
            try:
                client = traffic.open(now + stays, seed=system.seed + len(plan) - len(waiting))
                stage.clients.append(client)
            except RuntimeFull as refused:
                stage.refused[refused.reason] += 1
        held[-1].live = max(held[-1].live, len(traffic.clients))

    for k in range(stages):
        traffic.run(began + seconds((k + 1) * stage_s), each)
        held[-1].marks.append(traffic.mark())
        held[-1].last_step = len(traffic.steps)
        told(_line(k, held[-1]))
    traffic.hang_up()
    return held


def _row(
    system: System,
    traffic: Traffic,
    held: Sequence[Stage],
    sessions: int,
    most: int,
    *,
    stage: int | str,
) -> Row:
    clients = [client for one in held for client in one.clients]
    last = held[-1]
    steps = traffic.steps[held[0].first_step : last.last_step]
    refused = sum((one.refused for one in held), Counter())
    asked = sum(one.asked_ticks for one in held)
    in_time = sum(client.ticks - client.late for client in clients)
    row = {
        **system.row("load", system.case(sessions, slots=most, stage=stage)),
        **step_times(steps),
        **counts(held[0].marks[0], last.marks[1]),
        "sessions": max(one.live for one in held),
        "offered": sum(one.offered for one in held),
        "admitted": len(clients),
        "refused": refused.total(),
        "refused_for": dict(refused),
        "ended": sum(client.closed not in ("done", None) for client in clients),
        "late_sessions": sum(bool(client.late or client.missed_ticks) for client in clients),
        "worst_run": max((client.worst_run for client in clients), default=0),
        "served": round(min(1.0, in_time / asked), 4) if asked else None,
        "missed_pushes": sum(client.missed_pushes for client in clients),
    }
    if stage == "all" and clients:
        firsts = [client.first_ms for client in clients if client.first_ms is not None]
        row |= spread(firsts, "first_ms", (50, 99)) if firsts else {}
        row["holds"] = not (row["late_sessions"] or row["ended"] or row["misses"])
        row["drift_ms_max"] = round(max(client.drift_ms for client in clients), 3)
    return row


def _line(number: int, stage: Stage) -> str:
    missed = counts(*stage.marks)
    return (
        f"stage {number}: {stage.offered} came, {stage.refused.total()} refused, at most "
        f"{stage.live} live, {missed['misses']} of {missed['ticks']} ticks missed"
    )
