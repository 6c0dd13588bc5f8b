"""The Triton kernel of qkvr_prologue. The convolution's own pointers, and why its programs do not
race: device/short_conv.py; arenas of keys and values: device/kv.py.

x_ptr  [T, Q + 2 * HKV * D + r], stride_x between rows, Q = H * D
q_ptr  [T, H, D], stride_q between rows
q_gain_ptr, k_gain_ptr [D]
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.kv import as_kept, kv_row
from microturn.kernels.device.short_conv import convolve_row, packed_taps, row_facts


@triton.jit
def _scale(x, eps, D: tl.constexpr):
    """1 / rms of each row of [HEADS, BLOCK_D] fp32."""
    return tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]


@triton.jit
def qkvr_heads(
    x_ptr,
    taps_ptr,
    ring_ptr,
    q_gain_ptr,
    k_gain_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    k_table_ptr,
    v_table_ptr,
    slots_ptr,
    offsets_ptr,
    positions_ptr,
    exec_ptr,
    B,
    conv_capacity,
    capacity,
    pinned,
    q_eps,
    k_eps,
    stride_x,
    stride_q,
    C: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEADS: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    LINES: tl.constexpr,
    PACKED: tl.constexpr,
    PDL: tl.constexpr,
):
    """HEADS heads of one row: first those of k, then of v, then of q, so that the longest come
    first. HEADS depends on D alone. What says which row is which is read before the wait, as taps
    and gains are: the kernel before must not be the one that writes it.
    """
    KV_PARTS: tl.constexpr = (HKV + HEADS - 1) // HEADS
    row = tl.program_id(0)
    part = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    at = tl.cast(row, tl.int64)
    if part < 2 * KV_PARTS:
        of_v = part // KV_PARTS
        head = part % KV_PARTS * HEADS + tl.arange(0, HEADS)
        inside = (head < HKV)[:, None] & (d < D)[None, :]
        of_head = head[:, None] * D + d[None, :]
        c = of_v * (HKV * D) + of_head
        slot, first, position = row_facts(
            row, slots_ptr, offsets_ptr, positions_ptr, exec_ptr, B, LINES
        )
        packed = packed_taps(taps_ptr, c, inside, PACKED)
        gain = tl.load(k_gain_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        _, y = convolve_row(
            x_ptr + H * D, ring_ptr, taps_ptr, packed, c, inside, row, first, position, slot,
            stride_x, conv_capacity, C, K, PACKED,
        )  # fmt: skip
        kept = inside & (slot >= 0)
        if of_v == 0:
            k_at = kv_row(slot, position, k_table_ptr, capacity, pinned, PAGE_SIZE) * (HKV * D)
            k = y * _scale(y, k_eps, D) * gain[None, :]
            tl.store(k_ptr + k_at + of_head, as_kept(k, k_ptr.dtype.element_ty), mask=kept)
        else:
            v_at = kv_row(slot, position, v_table_ptr, capacity, pinned, PAGE_SIZE) * (HKV * D)
            tl.store(v_ptr + v_at + of_head, as_kept(y, v_ptr.dtype.element_ty), mask=kept)
    else:
        head = (part - 2 * KV_PARTS) * HEADS + tl.arange(0, HEADS)
        inside = (head < H)[:, None] & (d < D)[None, :]
        of_head = head[:, None] * D + d[None, :]
        gain = tl.load(q_gain_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        q = tl.load(x_ptr + at * stride_x + of_head, mask=inside, other=0.0).to(tl.float32)
        q = q * _scale(q, q_eps, D) * gain[None, :]
        tl.store(q_ptr + at * stride_q + of_head, q.to(q_ptr.dtype.element_ty), mask=inside)
