"""What a tick costs, as the ops it calls: one list for admission, bench and profiling. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from microturn.kernels.registry import Case

EXCHANGES = 2
"""Between ranks that share a layer, in every pass: behind attention and behind the MLP."""

EXCHANGE_US = 8.0
"""Of one of them, as vLLM's own all-reduce takes (spec/inkling.md 4.3); measured by others."""


class OpCall(NamedTuple):
    """One call of the op `op` in a tick. part: of the tick program: "embed", "append", "decode.1"
    (the single-row pass after the first output position), "heads.0", "codec".
    """

    part: str
    op: str
    case: Case


@dataclass(frozen=True)
class TickWork:
    """The lines of a tick.

    counts    rows each brings to the append pass, audio rows included
    starts    positions of their first rows
    speaking  how many hear and speak: the first ones
    patches   image patches among the rows
    """

    counts: tuple[int, ...]
    starts: tuple[int, ...]
    speaking: int
    patches: int = 0


@runtime_checkable
class CountsCost(Protocol):
    """A family that knows what its ticks cost."""

    @property
    def window_rows(self) -> int:
        """Rows after which a session's ticks cost no more than they did before."""
        ...

    def calls(self, work: TickWork) -> Iterable[OpCall]:
        """Every op of the tick, in order; embedding look-ups and copies are left out."""
        ...


class Totals(NamedTuple):
    """Arithmetic and traffic of some calls."""

    flops: int
    bytes: int


def totals(calls: Iterable[OpCall], itemsize: int, streamed: int | None = None) -> Totals:
    """At `itemsize` bytes a value, `streamed` bytes one of what is streamed."""
    flops = nbytes = 0
    for _, _, case in calls:
        flops += case.flops
        # Cases of ops that stream nothing take no width of it.
        nbytes += case.bytes(itemsize) if streamed is None else case.bytes(itemsize, streamed)
    return Totals(flops, nbytes)


def even(sessions: int, rows: int, start: int, speaking: int | None = None) -> TickWork:
    """`rows` spread over so many sessions as evenly as they go, all at one position."""
    less, more = divmod(rows, sessions) if sessions else (0, 0)
    counts = tuple(less + (line < more) for line in range(sessions))
    return TickWork(counts, (start,) * sessions, sessions if speaking is None else speaking)


def by_op(calls: Sequence[OpCall], itemsize: int) -> dict[str, Totals]:
    """Totals of each op, in the order of its first call."""
    found: dict[str, list[OpCall]] = {}
    for call in calls:
        found.setdefault(call.op, []).append(call)
    return {op: totals(its, itemsize) for op, its in found.items()}
