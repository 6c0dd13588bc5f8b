"""Launches the kernel of sampling.

A vocabulary of up to 4096 ids stays in the registers of one program. A larger one is cut into parts
of 4096, so that one row is read by many multiprocessors; the parts' candidates, about top_k each,
fit one block of the program that draws unless top_k is in the hundreds. Searching a threshold bit
by bit costs 32 block-wide counts, about as much as a radix sort's first pass, and needs no memory.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from microturn.kernels.launch import launch, zeroed
from microturn.kernels.rows import RowBatch
from microturn.kernels.sampling.kernel import sampling_rows
from microturn.kernels.sampling.reference import SamplingParams

PART = 4096
FINAL = 2048
MOST_ROWS = 1 << 14


def sampling_kernel(
    x: Tensor,
    weights: SamplingParams,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `sampling`. Raises ValueError above 16384 rows of a vocabulary that is cut."""
    batch, size = x.shape
    ids = torch.empty(batch, dtype=torch.int64, device=x.device) if out is None else out
    if x.stride(1) != 1:
        x = x.contiguous()
    split = triton.cdiv(size, PART)
    block = triton.next_power_of_2(size) if split == 1 else PART
    if split > 1:
        if batch > MOST_ROWS:
            raise ValueError(f"sampling: {batch} rows, at most {MOST_ROWS} can be drawn at once")
        keys, names = torch.empty(2, batch, size, dtype=torch.int32, device=x.device).unbind(0)
        counts = zeroed("sampling", 2 * MOST_ROWS, x.device)
    else:
        keys = names = counts = ids
    launch(
        sampling_rows,
        (batch * split,),
        x,
        weights.temperature,
        weights.top_k,
        weights.seed,
        weights.step,
        ids if rows is None else rows.slot_ids,
        ids if rows is None else rows.exec_mask.view(torch.uint8),
        ids,
        keys,
        names,
        counts,
        batch,
        x.stride(0),
        ids.stride(0),
        V=size,
        STREAM=weights.stream,
        HAS_ROWS=rows is not None,
        SPLIT=split,
        BLOCK=block,
        FINAL=FINAL,
        num_warps=max(1, min(block // 512, 8)),
        pdl=True,
    )
    return ids
