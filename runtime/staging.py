"""From a plan to the lines a tick program reads, and from what it wrote to each session's output.

Every engine does it here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from microturn.model.tick import TickLine, TickSize
from microturn.model.tick import TickOutputs as Buffers
from microturn.runtime.engine import RowInput, RowOutput, TickOutputs
from microturn.runtime.plan import RowPlan, TickPlan


class Staged(NamedTuple):
    """Rows of a plan in the order of their lines, those that hear and speak first."""

    rows: tuple[RowPlan, ...]
    lines: tuple[TickLine, ...]

    def size(self, frames: int) -> TickSize:
        """The least that holds the lines."""
        return TickSize.of(self.lines, frames)


def stage(plan: TickPlan, inputs: Mapping[str, RowInput]) -> Staged:
    """Raises KeyError when a row of the plan has no input."""
    rows = (*(row for row in plan.rows if row.exec), *(row for row in plan.rows if not row.exec))
    return Staged(rows, tuple(_line(row, inputs[row.session_id]) for row in rows))


def _line(row: RowPlan, given: RowInput) -> TickLine:
    return TickLine(
        slot=row.slot,
        emits=row.exec,
        reset=row.reset,
        n_feedback=row.n_feedback,
        context_ids=given.context_ids,
        audio=given.audio,
        seed=given.seed,
        sampling=given.sampling,
        patches=given.patches if len(given.patches) else None,
    )


def share_out(rows: Sequence[RowPlan], made: Buffers) -> TickOutputs:
    """The rows of buffers on the host. A session's arrays are its own: no output keeps the whole
    batch alive, and the buffers may be used again.
    """
    ok = made.ok.tolist()
    text_ids, codes, audio = made.text_ids.numpy(), made.codes.numpy(), made.audio.numpy()
    silent = RowOutput(
        True,
        np.empty(0, text_ids.dtype),
        np.empty((0, codes.shape[2]), codes.dtype),
        np.empty(0, audio.dtype),
    )
    return TickOutputs(
        {
            row.session_id: RowOutput(
                ok[b], text_ids[:, b].copy(), codes[:, b].copy(), audio[b].copy()
            )
            if row.exec
            else silent
            for b, row in enumerate(rows)
        },
        sum(made.experts.tolist()),
    )
