"""What a run leaves as data: one record a tick, and a summary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from microturn.runtime import Output

UNTRAINED = "untrained: seeded random weights, so neither words nor sounds mean anything"


@dataclass(frozen=True)
class TickRecord:
    """One tick of REPLY.json. Times are ms from the start of the input.

    tick      index on the clock's grid; a gap is a tick that was skipped
    events    [ms, token id, piece] of each text token
    slack_ms  deadline minus the moment the output was out; negative is a miss
    pending   context and patch rows still waiting
    marks     what was not ordinary, see `marks`
    delegations  the events of DelegationEvent.to_json
    """

    tick: int
    start_ms: float
    end_ms: float
    text: str
    events: tuple[tuple[float, int, str], ...]
    slack_ms: float
    step_ms: float
    pending: int
    marks: tuple[str, ...]
    delegations: tuple[Mapping[str, Any], ...] = ()


def marks(output: Output) -> tuple[str, ...]:
    """What was not ordinary: "late", "inserted_silence_ms=40", "dropped_ms=100", "delegation"."""
    amounts = ("inserted_silence_ms", "dropped_ms", "dropped_outputs")
    found = [f"{name}={value:g}" for name in amounts if (value := getattr(output, name))]
    return (*("late",) * output.late, *found, *("delegation",) * output.delegation)


def record(output: Output) -> TickRecord:
    """An output without its samples."""
    return TickRecord(
        tick=output.tick,
        start_ms=output.start_ms,
        end_ms=output.end_ms,
        text=output.text,
        events=tuple((event.ms, event.token_id, event.piece) for event in output.events),
        slack_ms=round(output.slack_ms, 3),
        step_ms=round(output.step_ms, 3),
        pending=output.pending_rows,
        marks=marks(output),
        delegations=tuple(event.to_json() for event in output.delegations),
    )


@dataclass(frozen=True)
class Word:
    """A word and when its first piece was said."""

    ms: float
    text: str


def words(records: Sequence[TickRecord]) -> list[Word]:
    """Pieces joined to words: a piece opens one unless it continues the piece just before it."""
    found: list[Word] = []
    for ms, _, piece in (event for record in records for event in record.events):
        if not piece:
            continue
        if found and not piece[0].isspace():
            found[-1] = Word(found[-1].ms, found[-1].text + piece)
        else:
            found.append(Word(ms, piece.strip()))
    return [word for word in found if word.text]


def spread(values: Sequence[float], name: str, points: Sequence[float]) -> dict[str, float]:
    """Percentiles of a series, keys "<name>_p50", "<name>_p999"; by rank, so each did occur."""
    found = np.percentile(np.asarray(values, np.float64), points, method="inverted_cdf")
    return {
        f"{name}_p{f'{point:g}'.replace('.', '')}": round(float(value), 3)
        for point, value in zip(points, found, strict=True)
    }


def summarise(records: Sequence[TickRecord]) -> dict[str, Any]:
    """Ticks, misses, step percentiles, and slack, whose low end is the one that matters.

    A tick the clock skipped because another ran over it counts as a miss, but not as a tick.
    records must not be empty.
    """
    slack = [record.slack_ms for record in records]
    steps = [record.step_ms for record in records]
    grid = [record.tick for record in records]
    skipped = grid[-1] - grid[0] + 1 - len(set(grid))
    return {
        "ticks": len(records),
        "misses": sum(value < 0 for value in slack) + skipped,
        "skipped_ticks": skipped,
        **spread(steps, "step_ms", (50, 99)),
        "step_ms_max": max(steps),
        **spread(slack, "slack_ms", (1, 50)),
        "slack_ms_min": min(slack),
        "words": len(words(records)),
        "marked_ticks": sum(bool(record.marks) for record in records),
    }


def write_json(path: Path, meta: Mapping[str, Any], records: Sequence[TickRecord]) -> None:
    """{"schema": 1, "untrained": ..., "summary": {...}, "ticks": [...]}, strict, a tick a line."""
    head = json.dumps({"schema": 1, **meta}, allow_nan=False, ensure_ascii=False, indent=1)
    lines = (json.dumps(asdict(r), allow_nan=False, ensure_ascii=False) for r in records)
    ticks = ",\n  ".join(lines)
    path.write_text(
        f'{head.removesuffix("}").rstrip()},\n "ticks": [\n  {ticks}\n ]\n}}\n', encoding="utf-8"
    )
