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


EIGHT_BITS = ("linear", "grouped_experts")
"""Ops whose matrices a model stored as fp8 keeps in 8 bits, but for vision's. Keys, values and the
rest of the weights, the depth head's too, have 16.
"""


def call_bytes(call: OpCall, itemsize: int, dtype: str | None = None) -> int:
    """Of a call at `itemsize` bytes a value, matrices as a model stored as `dtype` has them."""
    if dtype == "fp8" and call.op in EIGHT_BITS and call.part != "embed":
        return call.case.bytes(itemsize, 1)
    return call.case.bytes(itemsize)


def totals(calls: Iterable[OpCall], itemsize: int, dtype: str | None = None) -> Totals:
    """Sums over the calls; see `call_bytes`."""
    flops = nbytes = 0
    for call in calls:
        flops += call.case.flops
        nbytes += call_bytes(call, itemsize, dtype)
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
