"""What changed between two profiles, and how sure that is.

A machine is never twice equally fast, so every tick is first brought to one pace: the ratio by
which most of its time moved together, against the medians of the profile before. An op has changed
when its ticks at that pace differ: by rank-sum test, adjusted for the number of ops, and by more
than SMALLEST. The pace of the ticks after is the drift.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from microturn.profiling.document import Profile
from microturn.profiling.statistics import Array, holm, mann_whitney, ratio_interval
from microturn.profiling.tables import Table

SURE = 0.01
SMALLEST = 0.03
LEAST_TICKS = 8
MOST_WEIGHT = 0.1
"""An op that changed must not set the pace it is measured by."""


@dataclass(frozen=True)
class Change:
    """An op over a tick; ms are medians of ticks as they were.

    excess_ms  what it takes more at one pace
    ratio      of the medians at one pace, and 95 % of what that could have been
    p          adjusted; sure: it changed
    """

    op: str
    before_ms: float
    after_ms: float
    excess_ms: float
    ratio: float
    interval: tuple[float, float]
    p: float
    sure: bool


@dataclass(frozen=True)
class Difference:
    """changes: those that are sure first, of them the largest in ms; then the rest."""

    before: str
    after: str
    drift: float
    wall_ms: tuple[float, float]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    @property
    def sure(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.sure)


def diff(before: Profile, after: Profile) -> Difference:
    """Raises ValueError when there are too few ticks to tell."""
    for profile in (before, after):
        if (ticks := len(profile["ticks"]["wall"])) < LEAST_TICKS:
            raise ValueError(
                f"a profile of {ticks} ticks is too short to compare; record {LEAST_TICKS} or more"
            )
    a, b = _by_op(before), _by_op(after)
    ops = [op for op in a if op in b]
    usual = np.array([np.median(a[op]) for op in ops])
    pace_a, pace_b = (_pace(np.array([x[op] for op in ops]), usual) for x in (a, b))
    even = {op: (a[op] / pace_a, b[op] / pace_b) for op in ops}
    ps = holm([mann_whitney(*even[op]) for op in ops])
    changes = [_change(op, a[op], b[op], *even[op], p) for op, p in zip(ops, ps, strict=True)]
    none = np.zeros(LEAST_TICKS)
    for op in (*a.keys() - b.keys(), *b.keys() - a.keys()):
        one, other = a.get(op, none), b.get(op, none)
        changes.append(_change(op, one, other, one, other, 0.0))
    drift = float(np.median(pace_b) / np.median(pace_a))
    changes.sort(key=lambda change: (not change.sure, -abs(change.excess_ms)))
    walls = (float(np.median(p["ticks"]["wall"])) for p in (before, after))
    return Difference(
        before["case"], after["case"], drift, (next(walls), next(walls)), tuple(changes),
        tuple(_warnings(before, after)),
    )  # fmt: skip


def _by_op(profile: Profile) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for line in profile["lines"]:
        ms = np.array(line["ms"], np.float64)
        found[line["op"]] = found[line["op"]] + ms if line["op"] in found else ms
    return found


def _pace(ms: Array, usual: Array) -> Array:
    """Of each tick: the ratio to `usual` [ops] that half of the usual time lies above and half
    below, no op counting for more than MOST_WEIGHT of it. ms [ops, ticks].
    """
    known = usual > 0
    ratios = ms[known] / usual[known, None]
    weights = np.minimum(usual[known], MOST_WEIGHT * usual.sum())
    order = np.argsort(ratios, axis=0)
    reached = np.cumsum(weights[order], axis=0) >= weights.sum() / 2
    at = order[reached.argmax(axis=0), np.arange(ms.shape[1])]
    found: Array = ratios[at, np.arange(ms.shape[1])]
    return found


def _change(op: str, a: Array, b: Array, even_a: Array, even_b: Array, p: float) -> Change:
    one, other = float(np.median(even_a)), float(np.median(even_b))
    excess, ratio = other - one, other / one if one else float("inf")
    interval = ratio_interval(even_a, even_b) if one else (ratio, ratio)
    sure = p < SURE and abs(excess) > SMALLEST * one
    return Change(
        op, float(np.median(a)), float(np.median(b)), excess, ratio, interval, p, sure
    )  # fmt: skip


def _warnings(before: Profile, after: Profile) -> list[str]:
    found = []
    names: dict[str, Any] = {"case": "case", "device": "device", "threads": "number of threads"}
    for key, name in names.items():
        if before[key] != after[key]:
            found.append(f"the {name} differs: {before[key]} and {after[key]}")
    loads = before["load_1min"], after["load_1min"]
    if max(loads) > 1.5 * min(loads) + 1:
        found.append(f"the machine was not equally loaded: {loads[0]:g} and {loads[1]:g}")
    return found


def sentences(found: Difference) -> list[str]:
    """What changed, the most important first."""
    before, after = found.wall_ms
    made = [
        f"A tick took {before:.2f} ms before and {after:.2f} ms after ({after / before - 1:+.1%}); "
        f"most ops moved together by {found.drift - 1:+.1%}, which is put down to the machine."
    ]
    for change in found.sure:
        word = "slower" if change.excess_ms > 0 else "faster"
        low, high = (value - 1 for value in change.interval)
        made.append(
            f"{change.op} became {word}: {change.before_ms:.2f} ms to {change.after_ms:.2f} ms a "
            f"tick, {change.ratio - 1:+.0%} at one pace (95 %: {low:+.0%} to "
            f"{high:+.0%}), p = {change.p:.1g}."
        )
    if not found.sure:
        made.append(f"No op changed for sure (p < {SURE:g} and more than {SMALLEST:.0%}).")
    return made + [f"Mind that {text}." for text in found.warnings]


def table(found: Difference) -> Table:
    """Every op."""
    rows = tuple(
        (
            c.op,
            f"{c.before_ms:.3f}",
            f"{c.after_ms:.3f}",
            f"{c.excess_ms:+.3f}",
            f"{c.ratio:.3f}",
            f"{c.interval[0]:.3f} to {c.interval[1]:.3f}",
            f"{c.p:.1g}",
            "yes" if c.sure else "",
        )
        for c in found.changes
    )
    head = ("op", "before ms", "after ms", "excess ms", "ratio", "95 %", "p", "sure")
    note = (
        f"{found.before} and {found.after}. excess and ratio: at one pace, the drift of "
        f"{found.drift:.3f} taken off."
    )
    return Table("What changed", note, head, rows)


def to_json(found: Difference) -> str:
    """{"schema": 1, "kind": "diff", ...} and the fields of Difference."""
    document = {"schema": 1, "kind": "diff", **asdict(found)}
    for change in document["changes"]:
        if not isfinite(change["ratio"]):  # an op that was not there before
            change["ratio"], change["interval"] = None, None
    return json.dumps(document, allow_nan=False, indent=1) + "\n"
