"""Launches the kernel of open_lines."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from microturn.kernels.launch import launch
from microturn.kernels.open_lines.kernel import open_lines_one
from microturn.kernels.open_lines.reference import LineState, OpenedLines, Opening

BLOCK = 64


def open_lines_kernel(
    x: Opening,
    weights: Tensor,
    state: LineState,
    rows: None = None,
    *,
    out: OpenedLines | None = None,
) -> OpenedLines:
    """See `open_lines`."""
    width, lines = weights.shape[0], x.slot_ids.shape[0]
    made = out or OpenedLines.allocate(x, width, torch.empty)
    kept = state.feedback
    launch(
        open_lines_one,
        (lines + 1,),
        x.slot_ids,
        x.row_offsets,
        x.emits.view(torch.uint8),
        x.reset.view(torch.uint8),
        state.rows,
        state.frames,
        kept.parity,
        kept.data,
        weights,
        made.positions,
        made.heard,
        made.steps,
        made.said,
        made.ends,
        made.feedback,
        made.after,
        lines,
        x.num_rows,
        x.speaking,
        kept.data.shape[1],
        W=width,
        F=x.frames,
        BLOCK=BLOCK,
        BLOCK_W=triton.next_power_of_2(width),
        BLOCK_F=triton.next_power_of_2(x.frames),
        num_warps=1,
        pdl=True,
    )
    return made
