"""Launches the kernel of dmel."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.dmel.kernel import dmel_rows
from microturn.kernels.dmel.weights import FLOOR, HOP, NUM_MELS, TAPS, DMelWeights
from microturn.kernels.launch import launch
from microturn.kernels.rows import RowBatch

BLOCK, BLOCK_M = 32, 16
"""Columns of a frame and filters at a time."""


def dmel_kernel(
    x: Tensor,
    weights: DMelWeights,
    state: Twice | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `dmel`. Raises ValueError where hops are not dense."""
    if x.stride(1) != 1:
        raise ValueError(f"dmel: hops must be dense, got strides {x.stride()}")
    shape = (x.shape[0], NUM_MELS)
    bins = torch.empty(shape, dtype=torch.int64, device=x.device) if out is None else out
    launch(
        dmel_rows,
        (x.shape[0],),
        x,
        bins,
        weights.window,
        weights.filters,
        weights.edges,
        weights.row_waves,
        weights.twiddles,
        weights.column_waves,
        weights.starts,
        x if state is None else state.data,
        rows.positions if state is None else state.parity,
        rows.row_offsets,
        rows.slot_ids,
        rows.exec_mask.view(torch.uint8),
        rows.positions,
        0 if state is None else state.data.stride(0),
        0 if state is None else state.data.stride(1),
        rows.num_lines,
        x.stride(0),
        bins.stride(0),
        FLOOR=FLOOR,
        HOP=HOP,
        MELS=NUM_MELS,
        BANDS=weights.filters.shape[1],
        TAPS=TAPS,
        LINES=triton.next_power_of_2(max(rows.num_lines, 1)),
        HAS_STATE=state is not None,
        BLOCK=BLOCK,
        BLOCK_M=BLOCK_M,
        num_warps=4,
    )
    return bins
