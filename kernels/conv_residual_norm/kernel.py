"""The Triton kernel of conv_residual_norm. The convolution's own pointers, and why its programs do
not race: device/short_conv.py.

residual_ptr, h_ptr, normed_ptr [T, C], a stride between rows each
gain_ptr                        [C]
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.short_conv import convolve_row, packed_taps, row_facts


@triton.jit
def conv_residual_norm_rows(
    y_ptr,
    residual_ptr,
    taps_ptr,
    gain_ptr,
    ring_ptr,
    h_ptr,
    normed_ptr,
    slots_ptr,
    offsets_ptr,
    positions_ptr,
    exec_ptr,
    B,
    capacity,
    eps,
    stride_y,
    stride_residual,
    stride_h,
    stride_normed,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LINES: tl.constexpr,
    PACKED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row. What says which row is which is read before the wait, as taps and gain are: the
    kernel before must not be the one that writes it.
    """
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    inside = c < C
    slot, first, position = row_facts(
        row, slots_ptr, offsets_ptr, positions_ptr, exec_ptr, B, LINES
    )
    packed = packed_taps(taps_ptr, c, inside, PACKED)
    gain = tl.load(gain_ptr + c, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = tl.cast(row, tl.int64)
    residual = tl.load(residual_ptr + at * stride_residual + c, mask=inside, other=0.0)
    _, y = convolve_row(
        y_ptr, ring_ptr, taps_ptr, packed, c, inside, row, first, position, slot, stride_y,
        capacity, C, K, PACKED,
    )  # fmt: skip
    h = (residual.to(tl.float32) + y).to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + at * stride_h + c, h, mask=inside)
    wide = h.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / C + eps)
    normed = (wide * scale * gain).to(normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + at * stride_normed + c, normed, mask=inside)
