"""Launches the kernel of qkvr_prologue."""

from __future__ import annotations

import triton
from torch import Tensor

from microturn.kernels.device.kv import kv_arguments
from microturn.kernels.launch import launch
from microturn.kernels.qkvr_prologue.kernel import qkvr_heads
from microturn.kernels.qkvr_prologue.reference import QKVRState, QKVRWeights
from microturn.kernels.rows import RowBatch
from microturn.kernels.short_conv.launch import conv_arguments
from microturn.kernels.streaming_attention import AttentionInputs

TILE = 1024
"""Values of a program: 8 a thread of 4 warps, 16 bytes in 16-bit types. A row of interaction-small
is 6 programs, so that even one row is spread over several multiprocessors."""


def qkvr_prologue_kernel(
    x: Tensor,
    weights: QKVRWeights,
    state: QKVRState | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> AttentionInputs:
    """See `qkvr_prologue`. Raises NotImplementedError without state, ValueError on memory that is
    not laid out as the kernel reads it.
    """
    if state is None:
        raise NotImplementedError("whole sequences without state are torch's: call the reference")
    num_rows, head_dim = x.shape[0], weights.head_dim
    heads, kv_heads = weights.num_heads, weights.num_kv_heads
    q = x.new_empty(num_rows, heads, head_dim) if out is None else out
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError(f"qkvr_prologue: heads of out must be dense, got strides {q.stride()}")
    k, v = kv_arguments(state.kv.k), kv_arguments(state.kv.v)
    if k[2:] != v[2:]:
        raise ValueError(
            f"qkvr_prologue: k and v must be kept alike, got capacity, pinned and page size "
            f"{k[2:]} and {v[2:]}"
        )
    given = conv_arguments("qkvr_prologue", x, weights.taps, state.conv, rows)
    block = triton.next_power_of_2(head_dim)
    tile = max(1, TILE // block)
    launch(
        qkvr_heads,
        (num_rows, 2 * -(-kv_heads // tile) + -(-heads // tile)),
        x,
        given.taps,
        state.conv.data,
        weights.q_norm.gain,
        weights.k_norm.gain,
        q,
        k.data,
        v.data,
        k.table,
        v.table,
        *given.rows,
        rows.num_lines,
        state.conv.capacity,
        k.capacity,
        k.pinned,
        weights.q_norm.eps,
        weights.k_norm.eps,
        x.stride(0),
        q.stride(0),
        H=heads,
        HKV=kv_heads,
        D=head_dim,
        BLOCK_D=block,
        HEADS=tile,
        PAGE_SIZE=k.page_size,
        num_warps=max(1, tile * block // 256),
        pdl=True,
        **given.constants,
    )
    q_width, kv_width, _ = weights.widths
    r = x[:, q_width + kv_width :].view(num_rows, heads, weights.d_rel) if weights.d_rel else None
    return AttentionInputs(q, None, None, r)
