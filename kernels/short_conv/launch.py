"""Launches the kernel of short_conv."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from microturn.kernels.arena import Ring
from microturn.kernels.launch import launch
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.kernel import short_conv_rows

BLOCK = 1024
"""Channels of a program: 8 a thread of 4 warps."""


class ConvArguments(NamedTuple):
    """What every kernel with a short convolution takes of taps, ring and rows.

    taps      as the kernel reads them
    rows      slots, offsets, positions, exec mask as bytes
    constants C, K, LINES, PACKED
    """

    taps: Tensor
    rows: tuple[Tensor, Tensor, Tensor, Tensor]
    constants: dict[str, Any]


def conv_arguments(op: str, x: Tensor, taps: Tensor, ring: Ring, rows: RowBatch) -> ConvArguments:
    """Raises ValueError where rows of x or of the ring are not dense.

    Four 16-bit taps of a channel are one int64: read one by one, two bytes of every eight, they
    would take longer than all the rest.
    """
    if not ring.data.is_contiguous():
        raise ValueError(f"{op}: the ring must be contiguous, got strides {ring.data.stride()}")
    if x.stride(1) != 1:
        raise ValueError(f"{op}: rows must be dense, got strides {x.stride()}")
    channels, kernel_size = taps.shape
    taps = taps.contiguous()
    packed = kernel_size == 4 and taps.element_size() == 2 and taps.dtype == x.dtype
    return ConvArguments(
        taps.view(torch.int64) if packed else taps,
        (rows.slot_ids, rows.row_offsets, rows.positions, rows.exec_mask.view(torch.uint8)),
        {
            "C": channels,
            "K": kernel_size,
            "LINES": triton.next_power_of_2(max(rows.num_lines, 1)),
            "PACKED": packed,
        },
    )


def short_conv_kernel(
    x: Tensor,
    weights: Tensor,
    state: Ring | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `short_conv`. Raises NotImplementedError without state."""
    if state is None:
        raise NotImplementedError("whole sequences without state are torch's: call the reference")
    y = x.new_empty(x.shape) if out is None else out
    given = conv_arguments("short_conv", x, weights, state, rows)
    channels = x.shape[1]
    block = min(BLOCK, triton.next_power_of_2(channels))
    launch(
        short_conv_rows,
        (x.shape[0], -(-channels // block)),
        x,
        given.taps,
        state.data,
        y,
        *given.rows,
        rows.num_lines,
        state.capacity,
        x.stride(0),
        y.stride(0),
        BLOCK_C=block,
        num_warps=max(1, block // 256),
        pdl=True,
        **given.constants,
    )
    return y
