"""Whose time it was: the calls of a step beside the list of what a tick calls.

A family lists a tick's ops in the order of its program, each with its part and its case. The ops
that ran are in the same order, though an op may be called more or less often in a row than the list
says (three kinds of rows are normed apart, or together). So runs of the same op are matched with
runs of the same op, and a run's bytes and flops are those of its cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from microturn.model.cost import CountsCost, OpCall, call_bytes
from microturn.profiling.recorder import Event, Step, Tick

BETWEEN = "between ops"
"""What is in no op: the model's own glue, before the op it leads to."""

AFTER = "after"
"""The part of what follows the last op."""


class Key(NamedTuple):
    """part: of the tick program ("append", "decode.1", "heads.0", ...), "" where unknown."""

    part: str
    op: str


@dataclass(frozen=True)
class Line:
    """One op in one part of the tick.

    calls         a tick
    bytes, flops  of its cases, None where the family does not say
    ns            in each tick
    """

    key: Key
    calls: int
    bytes: int | None
    flops: int | None
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Attributed:
    """ticks: those that ran the same ops in the same order, over which the lines go. example: the
    calls of the median one, whose step began at example_start.
    """

    ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    example: tuple[tuple[Key, Event], ...]
    example_start: int


def attribute(ticks: Sequence[Tick], family: object, itemsize: int) -> Attributed:
    """The most frequent kind of tick, taken apart. Ticks that ran the program more than once, or
    called other ops than most, are left out. itemsize: bytes a value.

    Raises ValueError when no tick ran the program once.
    """
    once = [tick for tick in ticks if len(tick.steps) == 1 and tick.steps[0].events]
    if not once:
        raise ValueError("no tick stepped the model exactly once: nothing can be attributed")
    kinds = Counter(_order(tick.steps[0].events) for tick in once)
    order = kinds.most_common(1)[0][0]
    kept = [tick for tick in once if _order(tick.steps[0].events) == order]
    middle = sorted(kept, key=_took)[len(kept) // 2].steps[0]
    lines = attribute_steps(
        [tick.steps[0] for tick in kept], family, lambda call: call_bytes(call, itemsize), middle
    )
    keys = [key for key, _ in _runs(middle, family, order)]
    example = tuple(_placed(middle.events, keys))
    return Attributed(tuple(kept), tuple(lines), example, middle.start)


def attribute_steps(
    steps: Sequence[Step],
    family: object,
    nbytes: Callable[[OpCall], int],
    like: Step | None = None,
) -> list[Line]:
    """Steps that ran the same ops in the same order, taken apart. nbytes: of a call; like: the step
    whose calls are counted and costed, None: the first.
    """
    like = steps[0] if like is None else like
    runs = _runs(like, family, _order(like.events))
    keys = [key for key, _ in runs]
    costs: dict[Key, list[OpCall] | None] = {}
    for key, cases in runs:
        costs[key] = None if cases is None else (costs.get(key) or []) + cases
    spent = [_spent(step, keys) for step in steps]
    calls = Counter(key for key, _ in _placed(like.events, keys))
    lines = []
    for key in dict.fromkeys(key for each in spent for key in each):
        cases = [] if key.op == BETWEEN else costs[key]
        known = cases is not None
        lines.append(
            Line(
                key,
                calls[key],
                sum(map(nbytes, cases or ())) if known else None,
                sum(c.case.flops for c in cases or ()) if known else None,
                tuple(each.get(key, 0) for each in spent),
            )
        )
    return lines


def _took(tick: Tick) -> int:
    return tick.steps[0].end - tick.steps[0].start


def _order(events: Sequence[Event]) -> tuple[str, ...]:
    return tuple(op for op, _ in groupby(event.op for event in events))


def _runs(
    step: Step, family: object, order: Sequence[str]
) -> list[tuple[Key, list[OpCall] | None]]:
    """Of each run of one op: where it is, and its cases."""
    if isinstance(family, CountsCost) and step.work is not None:
        listed = [(op, list(run)) for op, run in groupby(family.calls(step.work), lambda c: c.op)]
        if [op for op, _ in listed] == list(order):
            return [(Key(run[0].part, op), run) for op, run in listed]
    return [(Key("", op), None) for op in order]


def _placed(events: Sequence[Event], keys: Sequence[Key]) -> list[tuple[Key, Event]]:
    groups = groupby(events, lambda event: event.op)
    return [(key, event) for key, (_, run) in zip(keys, groups, strict=True) for event in run]


def _spent(step: Step, keys: Sequence[Key]) -> dict[Key, int]:
    """ns by key, glue included: all of the step."""
    found: dict[Key, int] = {}
    at = step.start
    for key, event in _placed(step.events, keys):
        glue = Key(key.part, BETWEEN)
        found[glue] = found.get(glue, 0) + event.start - at
        found[key] = found.get(key, 0) + event.end - event.start
        at = event.end
    found[Key(AFTER, BETWEEN)] = step.end - at
    return found
