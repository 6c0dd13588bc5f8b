"""The Triton kernel of short_conv: glossary and the argument against races in device/short_conv.py.

y_ptr [T, C], stride_y between rows
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.short_conv import convolve_row, packed_taps, row_facts


@triton.jit
def short_conv_rows(
    x_ptr,
    taps_ptr,
    ring_ptr,
    y_ptr,
    slots_ptr,
    offsets_ptr,
    positions_ptr,
    exec_ptr,
    B,
    capacity,
    stride_x,
    stride_y,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LINES: tl.constexpr,
    PACKED: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK_C channels of one row. What says which row is which is read before the wait: the kernel
    before must not be the one that writes it.
    """
    row = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    slot, first, position = row_facts(
        row, slots_ptr, offsets_ptr, positions_ptr, exec_ptr, B, LINES
    )
    packed = packed_taps(taps_ptr, c, inside, PACKED)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    _, y = convolve_row(
        x_ptr, ring_ptr, taps_ptr, packed, c, inside, row, first, position, slot, stride_x,
        capacity, C, K, PACKED,
    )  # fmt: skip
    out = y_ptr + tl.cast(row, tl.int64) * stride_y + c
    tl.store(out, y.to(y_ptr.dtype.element_ty), mask=inside)
