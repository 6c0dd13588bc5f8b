"""What one tick will do: an immutable value that can be printed and replayed. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowPlan:
    """One session's part of a tick.

    exec       True: hears and speaks this tick. False: warming, only context is fed
    reset      the slot has a new tenant: its cursors return to 0 before the step
    n_feedback 1 when the append pass opens with the start row or the last output position
    n_context, n_patches, n_audio   rows of each kind in the append pass
    """

    session_id: str
    slot: int
    exec: bool
    reset: bool
    n_context: int
    n_patches: int
    n_audio: int
    n_feedback: int = 1

    @property
    def num_rows(self) -> int:
        """Rows of the append pass."""
        return self.n_feedback + self.n_context + self.n_patches + self.n_audio


@dataclass(frozen=True)
class TickPlan:
    """One tick.

    tick       index on the clock's grid
    deadline   ns on the runtime's clock
    b_bucket, row_bucket   sizes the batch is padded to: the key of a captured graph
    """

    tick: int
    deadline: int
    b_bucket: int
    row_bucket: int
    rows: tuple[RowPlan, ...]


def plan_of(tick: int, deadline: int, rows: tuple[RowPlan, ...]) -> TickPlan:
    """The plan of these rows."""
    total = sum(row.num_rows for row in rows)
    return TickPlan(tick, deadline, bucket(len(rows)), bucket(total), rows)


def part_of(plan: TickPlan, rows: tuple[RowPlan, ...]) -> TickPlan:
    """The same tick with some of its rows."""
    return plan_of(plan.tick, plan.deadline, rows)


def bucket(n: int) -> int:
    """The next power of two: sizes of batches and packed rows for which a graph exists."""
    return 1 << max(0, n - 1).bit_length()
