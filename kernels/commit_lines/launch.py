"""Launches the kernel of commit_lines."""

from __future__ import annotations

import torch
import triton

from microturn.kernels.commit_lines.kernel import commit_lines_one
from microturn.kernels.commit_lines.reference import Committed, Said
from microturn.kernels.launch import launch
from microturn.kernels.open_lines.reference import LineState

BLOCK = 1024


def commit_lines_kernel(
    x: Said,
    weights: None,
    state: LineState,
    rows: None = None,
    *,
    out: Committed | None = None,
) -> Committed:
    """See `commit_lines`. Raises ValueError where ids or audio are not contiguous."""
    for name in ("peaks", "finite", "text_ids", "codes", "audio", "after"):
        if not getattr(x, name).is_contiguous():
            raise ValueError(f"commit_lines: {name} must be contiguous; call contiguous() on it")
    lines = x.slot_ids.shape[0]
    frames, speaking, books = x.codes.shape
    samples, device = x.audio.shape[1], x.audio.device
    made = out or Committed(
        torch.empty(lines, dtype=torch.bool, device=device),
        torch.empty(lines, samples, device=device),
    )
    kept = state.feedback
    launch(
        commit_lines_one,
        (lines,),
        x.slot_ids,
        x.emits.view(torch.uint8),
        x.after,
        x.peaks,
        x.finite.view(torch.uint8),
        x.text_ids,
        x.codes,
        x.audio,
        state.rows,
        state.frames,
        kept.parity,
        kept.data,
        made.ok.view(torch.uint8),
        made.audio,
        lines,
        speaking,
        kept.data.shape[1],
        samples,
        F=frames,
        Q=books,
        BLOCK=BLOCK,
        BLOCK_F=triton.next_power_of_2(frames),
        BLOCK_Q=triton.next_power_of_2(books),
        num_warps=4,
        pdl=True,
    )
    return made
