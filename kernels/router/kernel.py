"""The Triton kernel of router.

x_ptr       [T, H], stride_x between rows
gate_ptr    [N, H], N = E + SH: the routed experts, then the shared ones
bias_ptr    [E] fp32
scale_ptr   [1] any float dtype, times `scale`
ids_ptr     [T, A] int32; weights_ptr [T, A], shared_ptr [T, SH] fp32
parts_ptr   [SPLIT, T, N] fp32: what each chunk of H adds to the logits
counts_ptr  [row blocks + 1] int32, zero before and after
experts_ptr [T, A] int32: ids, E where the row does not run
size, tiles, pairs: see kernels/device/experts.py
offsets, slots, exec: the lines, see kernels/device/rows.py
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.experts import list_experts, rows_run
from microturn.kernels.device.prefetch import prefetch_l2


@triton.jit
def _select(
    rows,
    bias_ptr,
    scale_ptr,
    scale,
    ids_ptr,
    weights_ptr,
    shared_ptr,
    parts_ptr,
    experts_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    T,
    B,
    E: tl.constexpr,
    SH: tl.constexpr,
    A: tl.constexpr,
    SPLIT: tl.constexpr,
    LISTED: tl.constexpr,
    LINES: tl.constexpr,
    E_PAD: tl.constexpr,
    A_PAD: tl.constexpr,
    SH_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Top A by score, ties to the lower id, and the weights of these rows."""
    N: tl.constexpr = E + SH
    inside = rows < T
    e = tl.arange(0, E_PAD)
    a = tl.arange(0, A_PAD)
    s = tl.arange(0, SH_PAD)
    size = tl.cast(T, tl.int64) * N
    row_at = rows.to(tl.int64)[:, None] * N
    in_e = inside[:, None] & (e < E)[None, :]
    in_s = inside[:, None] & (s < SH)[None, :]
    logits = tl.load(parts_ptr + row_at + e[None, :], mask=in_e, other=0.0, cache_modifier=".cg")
    shared = tl.load(
        parts_ptr + row_at + (E + s)[None, :], mask=in_s, other=0.0, cache_modifier=".cg"
    )
    for split in tl.static_range(1, SPLIT):
        part = parts_ptr + split * size + row_at
        logits += tl.load(part + e[None, :], mask=in_e, other=0.0, cache_modifier=".cg")
        shared += tl.load(part + (E + s)[None, :], mask=in_s, other=0.0, cache_modifier=".cg")

    bias = tl.load(bias_ptr + e, mask=e < E, other=0.0)
    small = tl.exp(-tl.abs(logits))
    scores = tl.where(logits < 0, small, 1.0) / (1.0 + small) + bias[None, :]
    # NaN first, as torch sorts it; what was chosen is -inf, so below any score.
    scores = tl.where(scores == scores, tl.maximum(scores, -3.0e38), float("inf"))
    scores = tl.where((e < E)[None, :], scores, float("-inf"))
    runs = inside
    if LISTED and LINES > 0:
        runs = runs & rows_run(rows, offsets_ptr, slots_ptr, exec_ptr, B, LINES)
    chosen = tl.full((ROWS, A_PAD), float("-inf"), tl.float32)
    for choice in tl.static_range(A):
        _, expert = tl.max(scores, axis=1, return_indices=True)
        here = e[None, :] == expert[:, None]
        scores = tl.where(here, float("-inf"), scores)
        logit = tl.sum(tl.where(here, logits, 0.0), axis=1)
        chosen = tl.where(a[None, :] == choice, logit[:, None], chosen)
        tl.store(ids_ptr + rows * A + choice, expert, mask=inside)
        if LISTED:
            tl.store(experts_ptr + rows * A + choice, tl.where(runs, expert, E), mask=inside)

    # Softmax over log-sigmoids: sigmoids that all underflow would divide zero by zero.
    chosen = tl.minimum(chosen, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(chosen)))
    shared = tl.minimum(shared, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(shared)))
    shared = tl.where((s < SH)[None, :], shared, float("-inf"))
    # NaN stays out of the maximum, which stays finite: a row of NaN is one of NaN all the same.
    largest = tl.maximum(
        tl.max(tl.where(chosen == chosen, chosen, -3.0e38), axis=1),
        tl.max(tl.where(shared == shared, shared, -3.0e38), axis=1),
    )[:, None]
    largest = tl.maximum(largest, -3.0e38)
    chosen = tl.exp(chosen - largest)
    shared = tl.exp(shared - largest)
    # One by one: the order of a reduction would depend on the layout.
    total = tl.zeros((ROWS,), tl.float32)
    for choice in tl.static_range(A):
        total += tl.sum(tl.where(a[None, :] == choice, chosen, 0.0), axis=1)
    for one in tl.static_range(SH):
        total += tl.sum(tl.where(s[None, :] == one, shared, 0.0), axis=1)
    factor = scale * tl.load(scale_ptr).to(tl.float32)
    in_a = inside[:, None] & (a < A)[None, :]
    tl.store(
        weights_ptr + rows[:, None] * A + a[None, :], chosen / total[:, None] * factor, mask=in_a
    )
    tl.store(
        shared_ptr + rows[:, None] * SH + s[None, :], shared / total[:, None] * factor, mask=in_s
    )


@triton.jit
def route(
    x_ptr,
    gate_ptr,
    bias_ptr,
    scale_ptr,
    ids_ptr,
    weights_ptr,
    shared_ptr,
    parts_ptr,
    counts_ptr,
    experts_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    scale,
    T,
    B,
    stride_x,
    H: tl.constexpr,
    E: tl.constexpr,
    SH: tl.constexpr,
    A: tl.constexpr,
    LISTED: tl.constexpr,
    LINES: tl.constexpr,
    E_PAD: tl.constexpr,
    A_PAD: tl.constexpr,
    SH_PAD: tl.constexpr,
    BINS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    LIST_CHUNK: tl.constexpr,
    CHUNK: tl.constexpr,
    LINE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SELECT: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Logits of BLOCK_N experts for BLOCK_T rows over one chunk of H (SPLIT > 1) or all of it.

    A logit is the sum of its chunks' sums, first to last, whichever programs make them. The last
    program of a block of rows selects for it, SELECT rows at a time; with LISTED, the last of all
    lists the experts. LINE inputs are a cache line of the gate.
    Dependents may start once x is complete: they may read x before they wait.
    """
    N: tl.constexpr = E + SH
    STEPS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    PER: tl.constexpr = CHUNK // BLOCK_K
    split = tl.program_id(0) % SPLIT
    block = tl.program_id(1)
    n = tl.program_id(0) // SPLIT * BLOCK_N + tl.arange(0, BLOCK_N)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    gate_row = gate_ptr + tl.minimum(n, N - 1)[:, None] * H
    x_row = x_ptr + tl.minimum(t, T - 1).to(tl.int64)[None, :] * stride_x
    first = split * PER
    last = STEPS
    if SPLIT > 1:
        last = min(first + PER, STEPS)
    if PDL:
        line = tl.minimum(first * BLOCK_K + tl.arange(0, CHUNK // LINE) * LINE, H - 1)
        prefetch_l2(gate_row + line[None, :])
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        at = step * BLOCK_K + k
        if H % BLOCK_K == 0:
            gate = tl.load(gate_row + at[None, :], eviction_policy="evict_last")
            x = tl.load(x_row + at[:, None], eviction_policy="evict_last")
        else:
            gate = tl.load(gate_row + at[None, :], mask=(at < H)[None, :], other=0.0)
            x = tl.load(x_row + at[:, None], mask=(at < H)[:, None], other=0.0)
        if gate.dtype != x.dtype:
            gate, x = gate.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(gate, x, acc, input_precision="ieee")
        if SPLIT == 1:
            whole = (step % PER == PER - 1) | (step == STEPS - 1)
            total += tl.where(whole, acc, 0.0)
            acc = tl.where(whole, 0.0, acc)
    if SPLIT > 1:
        total = acc
    inside = (n < N)[:, None] & (t < T)[None, :]
    part = parts_ptr + split * (tl.cast(T, tl.int64) * N) + t.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(part, total, mask=inside)

    tl.debug_barrier()
    arrived = tl.atomic_add(counts_ptr + 1 + block, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(0) - 1:
        tl.store(counts_ptr + 1 + block, 0)
        for start in tl.range(0, min(BLOCK_T, T - block * BLOCK_T), SELECT):
            _select(
                block * BLOCK_T + start + tl.arange(0, SELECT),
                bias_ptr,
                scale_ptr,
                scale,
                ids_ptr,
                weights_ptr,
                shared_ptr,
                parts_ptr,
                experts_ptr,
                offsets_ptr,
                slots_ptr,
                exec_ptr,
                T,
                B,
                E,
                SH,
                A,
                SPLIT,
                LISTED,
                LINES,
                E_PAD,
                A_PAD,
                SH_PAD,
                SELECT,
            )
        if LISTED:
            tl.debug_barrier()
            blocks = tl.num_programs(1)
            done = 0
            if blocks > 1:
                done = tl.atomic_add(counts_ptr, 1, sem="acq_rel", scope="gpu")
            if done == blocks - 1:
                list_experts(
                    experts_ptr,
                    size_ptr,
                    tiles_ptr,
                    pairs_ptr,
                    T * A,
                    E,
                    BINS,
                    TILE_ROWS,
                    LIST_CHUNK,
                )
                if blocks > 1:
                    tl.store(counts_ptr, 0)
