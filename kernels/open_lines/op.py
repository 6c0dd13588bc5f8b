"""open_lines: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.open_lines.reference import (
    LineState,
    OpenedLines,
    Opening,
    open_lines_reference,
)

OP = "open_lines"


def open_lines(
    x: Opening,
    weights: Tensor,
    state: LineState,
    rows: None = None,
    *,
    out: OpenedLines | None = None,
) -> OpenedLines:
    """Where each line of a tick stands: positions = committed + 0, 1, 2, ...

    A line whose slot has a new tenant first sets both cursors and the parity of the slot to 0. What
    the line reads back is `weights` until it has spoken, then what its slot keeps. No id is
    checked: only the device knows it.

    x       Opening
    weights [1 + Q] int64: text id and codes that open a session
    state   LineState; written where a line says `reset`, nowhere else
    rows    unused; the signature is the same for every op
    out     OpenedLines; allocated when None

    Source: spec/interaction.md 1, DESIGN 4. Raises ValueError on shapes, TypeError on dtypes.
    """
    lines = x.slot_ids.shape[0]
    check_shape(OP, "slot_ids", x.slot_ids, ("B",))
    check_shape(OP, "row_offsets", x.row_offsets, (lines + 1,))
    check_shape(OP, "emits", x.emits, (lines,))
    check_shape(OP, "reset", x.reset, (lines,))
    check_shape(OP, "feedback", state.feedback.data, (2, "S", weights.shape[0]))
    check_shape(OP, "rows", state.rows, (state.feedback.data.shape[1],))
    check_shape(OP, "frames", state.frames, (state.feedback.data.shape[1],))
    check_dtype(OP, "slot_ids", x.slot_ids, torch.int32)
    check_dtype(OP, "row_offsets", x.row_offsets, torch.int32)
    check_dtype(OP, "emits", x.emits, torch.bool)
    check_dtype(OP, "reset", x.reset, torch.bool)
    check_dtype(OP, "start", weights, torch.int64)
    if not 0 <= x.speaking <= lines or x.frames < 1:
        raise ValueError(
            f"{OP}: speaking must be 0 to {lines} lines and frames 1 or more, got {x.speaking} "
            f"and {x.frames}"
        )
    return pick(OP, x.slot_ids.device, open_lines_reference)(x, weights, state, rows, out=out)
