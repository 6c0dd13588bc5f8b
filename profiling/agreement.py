"""A plan beside the capacity that was measured on the same kind of machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microturn.profiling.plan import Plan
from microturn.profiling.tables import Table

WITHIN = 0.15


@dataclass(frozen=True)
class Agreement:
    """steps: sessions, ms planned, ms measured (p50 of a tick, outputs out)."""

    planned: int
    measured: int
    steps: tuple[tuple[int, float, float], ...]

    @property
    def off(self) -> float:
        return self.planned / self.measured - 1

    @property
    def holds(self) -> bool:
        return abs(self.off) <= WITHIN


def load(path: Path) -> dict[str, Any]:
    """The document of `microturn-bench capacity --out`. Raises ValueError, OSError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    meta = found.get("meta", {}) if isinstance(found, dict) else {}
    if not isinstance(found, dict) or found.get("suite") != "capacity" or "capacity" not in meta:
        raise ValueError(f"{path} is no capacity; `microturn-bench capacity --out` writes one")
    if not found["rows"] or not meta["capacity"]:
        raise ValueError(f"{path} found no capacity: not one session was held")
    return found


def sessions(capacity: Mapping[str, Any]) -> list[int]:
    """Numbers that were measured."""
    return sorted({row["sessions"] for row in capacity["rows"]})


def compare(made: Plan, capacity: Mapping[str, Any]) -> Agreement:
    """made: with a level for each of `sessions`. Raises ValueError where the two are not alike."""
    row = capacity["rows"][0]
    case = dict(pair.split("=", 1) for pair in row["case"].split(","))
    wanted = {"preset": made.preset, "tick_ms": str(made.tick_ms), "dtype": made.dtype}
    for name, mine in wanted.items():
        its = {**case, "dtype": row["dtype"]}.get(name)
        if its != mine:
            raise ValueError(f"the plan is of {name} {mine}, the capacity was measured at {its}")
    if made.gpu.lower() not in capacity["meta"]["device"].lower():
        raise ValueError(f"the plan is of {made.gpu}, the capacity of {capacity['meta']['device']}")
    planned = {level.sessions: level.step_ms for level in made.levels}
    measured: dict[int, float] = {}
    for row in capacity["rows"]:  # flat out before on the real clock
        measured.setdefault(row["sessions"], row["busy_ms_p50"])
    steps = tuple((n, planned[n], ms) for n, ms in sorted(measured.items()))
    return Agreement(made.sessions, capacity["meta"]["capacity"], steps)


def sentence(found: Agreement) -> str:
    verdict = "within" if found.holds else "NOT within"
    return (
        f"Planned {found.planned} sessions, measured {found.measured}: {found.off:+.0%}, {verdict} "
        f"{WITHIN:.0%}."
    )


def table(found: Agreement) -> Table:
    rows = tuple(
        (str(n), f"{planned:.2f}", f"{measured:.2f}", f"{planned / measured - 1:+.0%}")
        for n, planned, measured in found.steps
    )
    note = "ms of a tick; measured: the median until its outputs were out."
    return Table("Planned and measured", note, ("sessions", "planned", "measured", "off"), rows)
