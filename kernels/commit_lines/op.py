"""commit_lines: the public function."""

from __future__ import annotations

import torch

from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.commit_lines.reference import Committed, Said, commit_lines_reference
from microturn.kernels.dispatch import pick
from microturn.kernels.open_lines.reference import LineState

OP = "commit_lines"


def commit_lines(
    x: Said,
    weights: None,
    state: LineState,
    rows: None = None,
    *,
    out: Committed | None = None,
) -> Committed:
    """ok[b] = not emits[b], or logits and audio of line b are all finite; cursors[slot] = after
    where ok.

    A line that is ok and emits also keeps its last text id and codes in the other copy of
    `feedback` and flips the slot's parity, which commits every Twice arena. A line that is not ok
    changes nothing: its slot is where its last commit was.

    x       Said
    weights, rows: unused; the signature is the same for every op
    state   LineState
    out     Committed: ok of all lines (True for those of no slot), audio clamped to [-1, 1], zeros
            for samples that are not finite and lines that do not speak; allocated when None

    Source: DESIGN 4. Raises ValueError on shapes, TypeError on dtypes.
    """
    lines = x.slot_ids.shape[0]
    frames, speaking, books = x.codes.shape
    check_shape(OP, "emits", x.emits, (lines,))
    check_shape(OP, "after", x.after, (2, lines))
    check_shape(OP, "peaks", x.peaks, (frames, speaking))
    check_shape(OP, "finite", x.finite, (frames, speaking))
    check_shape(OP, "text_ids", x.text_ids, (frames, speaking))
    check_shape(OP, "audio", x.audio, (speaking, "N"))
    check_shape(OP, "feedback", state.feedback.data, (2, "S", 1 + books))
    for name, dtype in (
        ("slot_ids", torch.int32),
        ("emits", torch.bool),
        ("after", torch.int64),
        ("peaks", torch.float32),
        ("finite", torch.bool),
        ("text_ids", torch.int64),
        ("codes", torch.int64),
        ("audio", torch.float32),
    ):
        check_dtype(OP, name, getattr(x, name), dtype)
    run = pick(OP, x.slot_ids.device, commit_lines_reference)
    return run(x, weights, state, rows, out=out)
