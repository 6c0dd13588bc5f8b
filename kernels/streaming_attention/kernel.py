"""The Triton kernels of streaming_attention: plan a step, append to the arenas, attend.

A segment is a tile of a line's queries with the leaves they see: up to TILE rows of the line, each
with GROUP query heads of one kv head (GROUP_PAD places, a power of two), BLOCK_Q = TILE * GROUP_PAD
places in all. The leaves of all segments, one segment after another, are numbered 0 to F - 1 and
cut into ranges of `per`; a program works on one range for one kv head.

The first SINKS keys of a line are seen behind the window, too. Numbered as a segment has them, its
leaves are those of the sinks, 0 and on, and from `gap` further on those of the window; its groups
likewise. A group of which it has no leaf would change no bits (see `merge.py`) and is left out.

q_ptr, out_ptr [T, H, D], stride_q, stride_out between rows
k_ptr, v_ptr   arenas, k_table_ptr, v_table_ptr their page tables (see device/kv.py); of 8-bit ones
               `attend` takes keys as int32, four each, and values as int16, two each
r_ptr          [T, H, REL], stride_r between rows
bank_ptr       [REL, EXTENT], strides stride_c, stride_d
plan_ptr       int32, see `plan_step`
parts_ptr      [slots, Hkv, D + 2, BLOCK_Q] fp32: partials; row D the maxima, row D + 1 the sums.
               Slot segment.slot + i is for the part of its group i that begins the group, slot
               SINGLES + 7 * range + i for the i-th leaf of a range that begins inside a group
counts_ptr     [segments, Hkv] arrivals, zero before and after
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.fp8 import from_e4m3_pairs, from_e4m3_quads
from microturn.kernels.device.kv import as_kept, kv_row
from microturn.kernels.device.rows import line_of_row, running_slot

LEAF: tl.constexpr = tl.constexpr(128)
GROUP_LEAVES: tl.constexpr = tl.constexpr(8)
NOTHING: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)

HEAD: tl.constexpr = tl.constexpr(8)
"""int32 of a plan's head: F, per, segments, idle."""
RECORD: tl.constexpr = tl.constexpr(8)
"""int32 of a segment: number of its first leaf, gap, leaves, row, rows, position, arena slot, slot
of its partials. Of an idle stretch of rows: row, rows."""


@triton.jit
def _spread(n, HEAD_END: tl.constexpr, gap):
    """Which leaf of the stream a segment's n-th is; of groups alike."""
    if HEAD_END == 0:
        return n + gap
    else:
        return tl.where(n < HEAD_END, n, n + gap)


@triton.jit
def _packed(n, HEAD_END: tl.constexpr, gap):
    """The inverse; of a leaf that the segment has not, the number of the next one that it has."""
    if HEAD_END == 0:
        return tl.maximum(n - gap, 0)
    else:
        return tl.minimum(n, tl.maximum(n - gap, HEAD_END))


@triton.jit
def _group_gap(gap, SINK_LEAVES: tl.constexpr, SINK_GROUPS: tl.constexpr):
    if SINK_LEAVES == 0:
        return gap // GROUP_LEAVES
    else:
        return tl.maximum((gap + SINK_LEAVES) // GROUP_LEAVES - SINK_GROUPS, 0)


@triton.jit(do_not_specialize=["B", "T", "window", "TILES", "RANGES"])
def plan_step(
    slots_ptr,
    offsets_ptr,
    positions_ptr,
    exec_ptr,
    plan_ptr,
    B,
    T,
    window,
    TILES,
    RANGES,
    TILE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SINKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """plan_ptr: HEAD | segments [B * TILES, RECORD] | idle [B * TILES + 1, RECORD] | the first
    segment of each range [RANGES]. One program; SEGMENTS a power of two, at least B * TILES.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    SINK_LEAVES: tl.constexpr = (SINKS + LEAF - 1) // LEAF
    SINK_GROUPS: tl.constexpr = (SINK_LEAVES + GROUP_LEAVES - 1) // GROUP_LEAVES
    i = tl.arange(0, SEGMENTS)
    line = i // TILES
    inside = line < B
    start = tl.load(offsets_ptr + line, mask=inside, other=0)
    stop = tl.load(offsets_ptr + 1 + line, mask=inside, other=0)
    slot = running_slot(line, slots_ptr, exec_ptr, B)
    offset = i % TILES * TILE
    rows = tl.minimum(tl.maximum(stop - start - offset, 0), TILE)
    runs = (slot >= 0) & (rows > 0)
    idle = (slot < 0) & (rows > 0)
    position = tl.load(positions_ptr + start, mask=runs, other=0).to(tl.int32) + offset
    gap = tl.maximum(tl.maximum(position - window + 1, 0) // LEAF - SINK_LEAVES, 0)
    last = (position + rows - 1) // LEAF
    leaves = tl.where(runs, last - gap + 1, 0)
    group_gap = _group_gap(gap, SINK_LEAVES, SINK_GROUPS)
    groups = tl.where(runs, _packed(last // GROUP_LEAVES, SINK_GROUPS, group_gap) + 1, 0)
    after = tl.cumsum(leaves)
    begin = after - leaves
    total = tl.sum(leaves)
    per = tl.maximum((total + RANGES - 1) // RANGES, 1)

    count = runs.to(tl.int32)
    record = plan_ptr + HEAD + (tl.cumsum(count) - count) * RECORD
    tl.store(record, begin, mask=runs)
    tl.store(record + 1, gap, mask=runs)
    tl.store(record + 2, leaves, mask=runs)
    tl.store(record + 3, start + offset, mask=runs)
    tl.store(record + 4, rows, mask=runs)
    tl.store(record + 5, position, mask=runs)
    tl.store(record + 6, slot, mask=runs)
    tl.store(record + 7, tl.cumsum(groups) - groups, mask=runs)

    still = idle.to(tl.int32)
    idle_ptr = plan_ptr + HEAD + B * TILES * RECORD
    record = idle_ptr + (tl.cumsum(still) - still) * RECORD
    tl.store(record, start + offset, mask=idle)
    tl.store(record + 1, rows, mask=idle)
    num_idle = tl.sum(still)
    end = tl.load(offsets_ptr + B)
    tl.store(idle_ptr + num_idle * RECORD, end)
    tl.store(idle_ptr + num_idle * RECORD + 1, T - end)

    tl.store(plan_ptr, total)
    tl.store(plan_ptr + 1, per)
    tl.store(plan_ptr + 2, tl.sum(count))
    tl.store(plan_ptr + 3, num_idle + 1)
    ranges_ptr = idle_ptr + (B * TILES + 1) * RECORD
    ends = tl.where(runs, after, 0)
    for at in range(0, RANGES, 16):
        p = at + tl.arange(0, 16)
        # Segments that end at or before the range; `count` skips lines that do not run.
        before = (ends[None, :] <= p[:, None] * per) & runs[None, :]
        tl.store(ranges_ptr + p, tl.sum(before.to(tl.int32), 1), mask=p < RANGES)


@triton.jit
def _cos_sin(turns):
    """Of 0 to 1 turns, within 1e-7. The library's cosine keeps a table on the stack."""
    quarter = tl.floor(turns * 4.0 + 0.5)
    x = (turns - quarter * 0.25) * 6.283185307179586
    y = x * x
    sin = x + x * y * (-1.6666654611e-1 + y * (8.3321608736e-3 - y * 1.9515295891e-4))
    cos = 1.0 - 0.5 * y + y * y * (4.166664568e-2 + y * (2.443315711e-5 * y - 1.388731625e-3))
    odd = (quarter == 1.0) | (quarter == 3.0)
    cos, sin = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    cos = tl.where((quarter == 1.0) | (quarter == 2.0), -cos, cos)
    sin = tl.where((quarter == 2.0) | (quarter == 3.0), -sin, sin)
    return cos, sin


@triton.jit
def _turn(x_ptr, y_ptr, cos, sin, pair, inside, keep):
    """The pairs of one head turned, in fp32, cast once into y."""
    even = tl.load(x_ptr + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(x_ptr + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    out: tl.constexpr = y_ptr.dtype.element_ty
    tl.store(y_ptr + 2 * pair, as_kept(even * cos - odd * sin, out), mask=inside & keep)
    tl.store(y_ptr + 2 * pair + 1, as_kept(even * sin + odd * cos, out), mask=inside & keep)


@triton.jit(do_not_specialize=["B"])
def append_rows(
    q_ptr,
    turned_ptr,
    k_in_ptr,
    v_in_ptr,
    k_ptr,
    v_ptr,
    k_table_ptr,
    v_table_ptr,
    turns_ptr,
    slots_ptr,
    offsets_ptr,
    positions_ptr,
    exec_ptr,
    B,
    capacity,
    pinned,
    stride_q,
    stride_k,
    stride_v,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    LINES: tl.constexpr,
    ROPE: tl.constexpr,
    WRITE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a row and head: k and v into the arenas (WRITE), k and q turned (ROPE).

    turns_ptr [D // 2] fp64: turns a position makes each pair go round. In fp64 the whole turns are
    taken off, so that fp32 sees an angle below one turn, however late the position.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    head = tl.program_id(1)
    line = line_of_row(row, offsets_ptr, B, LINES)
    slot = running_slot(line, slots_ptr, exec_ptr, B)
    position = tl.load(positions_ptr + row)
    d = tl.arange(0, BLOCK_D)
    at = tl.cast(row, tl.int64)
    if ROPE:
        pair = tl.arange(0, BLOCK_D // 2)
        inside = pair < D // 2
        turns = tl.load(turns_ptr + pair, mask=inside, other=0.0) * position.to(tl.float64)
        cos, sin = _cos_sin((turns - tl.floor(turns)).to(tl.float32))
        keep = slot > -2
        if head < H:
            _turn(
                q_ptr + at * stride_q + head * D,
                turned_ptr + (at * H + head) * D,
                cos,
                sin,
                pair,
                inside,
                keep,
            )
    if WRITE:  # noqa: SIM102 (known when compiled)
        if (head < HKV) & (slot >= 0):
            k_row = kv_row(slot, position, k_table_ptr, capacity, pinned, PAGE_SIZE) * HKV + head
            v_row = kv_row(slot, position, v_table_ptr, capacity, pinned, PAGE_SIZE) * HKV + head
            k_in = k_in_ptr + at * stride_k + head * D
            if ROPE:
                _turn(k_in, k_ptr + k_row * D, cos, sin, pair, inside, keep)
            else:
                k = tl.load(k_in + d, mask=d < D, other=0.0)
                tl.store(k_ptr + k_row * D + d, as_kept(k, k_ptr.dtype.element_ty), mask=d < D)
            v = tl.load(v_in_ptr + at * stride_v + head * D + d, mask=d < D, other=0.0)
            tl.store(v_ptr + v_row * D + d, as_kept(v, v_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def fold(top, total, acc, top_in, total_in, acc_in):
    """`merge.merge` of two partials, in powers of two: maxima and sums [N], values [D, N].

    The fused multiply-adds are spelled out, so that every place that folds rounds alike.
    """
    new = tl.maximum(top, top_in)
    kept = tl.exp2(top - new)
    taken = tl.exp2(top_in - new)
    total = tl.fma(total_in, taken, total * kept)
    acc = tl.fma(acc_in, tl.broadcast_to(taken[None, :], acc.shape), acc * kept[None, :])
    return new, total, acc


@triton.jit
def _put(parts_ptr, slot, head, HKV: tl.constexpr, D: tl.constexpr, top, total, acc, d, n, valid):
    N: tl.constexpr = acc.shape[1]
    part = parts_ptr + (tl.cast(slot, tl.int64) * HKV + head) * ((D + 2) * N)
    keep = valid[None, :]
    if acc.shape[0] != D:
        keep = keep & (d < D)[:, None]
    tl.store(part + d[:, None] * N + n[None, :], acc, mask=keep)
    tl.store(part + D * N + n, top, mask=valid)
    tl.store(part + (D + 1) * N + n, total, mask=valid)


@triton.jit
def _get(parts_ptr, slot, head, HKV: tl.constexpr, D: tl.constexpr, N: tl.constexpr, d, n, valid):
    """Of places that are not valid: a partial that has seen no key."""
    part = parts_ptr + (tl.cast(slot, tl.int64) * HKV + head) * ((D + 2) * N)
    keep = valid[None, :]
    if d.shape[0] != D:
        keep = keep & (d < D)[:, None]
    at = part + d[:, None] * N + n[None, :]
    acc = tl.load(at, mask=keep, other=0.0, cache_modifier=".cg")
    top = tl.load(part + D * N + n, mask=valid, other=NOTHING, cache_modifier=".cg")
    total = tl.load(part + (D + 1) * N + n, mask=valid, other=0.0, cache_modifier=".cg")
    return top, total, acc


@triton.jit
def _answer(
    out_ptr,
    stride_out,
    total,
    acc,
    row,
    head,
    d,
    n,
    valid,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
):
    at = tl.cast(row, tl.int64) + n // GROUP_PAD
    place = out_ptr + at * stride_out + (head * GROUP + n % GROUP_PAD) * D
    keep = valid[None, :]
    if acc.shape[0] != D:
        keep = keep & (d < D)[:, None]
    y = acc / tl.where(valid, total, 1.0)[None, :]
    tl.store(place[None, :] + d[:, None], y.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _bias(
    r_ptr,
    bank_ptr,
    r_row,
    distance,
    stride_c,
    stride_d,
    row_of_n,
    valid,
    EXTENT,
    REL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """[128, BLOCK_Q]: r . bank by key and place. A row's slice of the bank meets only its own
    columns of r, the others are zero, so that the rows' products add up without a select.

    r_row    [BLOCK_Q] offsets of r; distance [128] from the tile's first row to each key
    """
    c = tl.arange(0, BLOCK_R)
    r_mask = valid[:, None]
    if REL != BLOCK_R:
        r_mask = r_mask & (c < REL)[None, :]
    r = tl.load(r_ptr + r_row[:, None] + c[None, :], mask=r_mask, other=0.0)
    bias = tl.zeros((LEAF, BLOCK_Q), tl.float32)
    for row in tl.static_range(TILE_ROWS):
        away = distance + row
        near = (away >= 0) & (away < EXTENT)
        if REL != BLOCK_R:
            near_mask = near[:, None] & (c < REL)[None, :]
        else:
            near_mask = near[:, None] & (c >= 0)[None, :]
        at = bank_ptr + away[:, None] * stride_d + c[None, :] * stride_c
        bank = tl.load(at, mask=near_mask, other=0.0).to(r.dtype)
        mine = r if TILE_ROWS == 1 else tl.where((row_of_n == row)[:, None], r, 0.0).to(r.dtype)
        bias = tl.dot(bank, tl.trans(mine), bias, input_precision="ieee")
    return bias


@triton.jit
def _merge_segment(
    parts_ptr,
    out_ptr,
    stride_out,
    begin,
    gap,
    leaves,
    row,
    rows,
    slot,
    per,
    SINGLES,
    head,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    MERGE_Q: tl.constexpr,
    SINK_LEAVES: tl.constexpr,
    SINK_GROUPS: tl.constexpr,
    PREFIX: tl.constexpr,
):
    """The partials of a segment, folded within groups and over them as if one program had."""
    d = tl.arange(0, BLOCK_D)
    end = begin + leaves
    group_gap = _group_gap(gap, SINK_LEAVES, SINK_GROUPS)
    last = _spread(leaves - 1, SINK_LEAVES, gap)
    groups = _packed(last // GROUP_LEAVES, SINK_GROUPS, group_gap) + 1
    done = 0
    if PREFIX:
        # Groups that the segment's first range has finished: slot 0 holds them all.
        cut = tl.minimum((begin // per + 1) * per, end)
        next_group = _spread(cut - begin, SINK_LEAVES, gap) // GROUP_LEAVES
        done = tl.where(cut < end, _packed(next_group, SINK_GROUPS, group_gap), 0)
    for at in tl.static_range(0, TILE_ROWS * GROUP_PAD, MERGE_Q):
        n = at + tl.arange(0, MERGE_Q)
        valid = (n // GROUP_PAD < rows) & (n % GROUP_PAD < GROUP)
        top = tl.full((MERGE_Q,), NOTHING, tl.float32)
        total = tl.zeros((MERGE_Q,), tl.float32)
        acc = tl.zeros((BLOCK_D, MERGE_Q), tl.float32)
        if PREFIX:
            there = valid & (done > 0)
            top, total, acc = _get(parts_ptr, slot, head, HKV, D, BLOCK_Q, d, n, there)
        for g in range(done, groups):
            lowest = _spread(g, SINK_GROUPS, group_gap) * GROUP_LEAVES
            leaf = begin + _packed(lowest, SINK_LEAVES, gap)
            stop = tl.minimum(begin + _packed(lowest + GROUP_LEAVES, SINK_LEAVES, gap), end)
            cut = tl.minimum((leaf // per + 1) * per, stop)
            g_top, g_total, g_acc = _get(parts_ptr, slot + g, head, HKV, D, BLOCK_Q, d, n, valid)
            if cut < stop:
                for i in tl.static_range(1, GROUP_LEAVES):
                    x = leaf + i
                    single = SINGLES + x // per * (GROUP_LEAVES - 1) + x % per
                    there = valid & (x >= cut) & (x < stop)
                    x_top, x_total, x_acc = _get(
                        parts_ptr, single, head, HKV, D, BLOCK_Q, d, n, there
                    )
                    g_top, g_total, g_acc = fold(g_top, g_total, g_acc, x_top, x_total, x_acc)
            top, total, acc = fold(top, total, acc, g_top, g_total, g_acc)
        _answer(out_ptr, stride_out, total, acc, row, head, d, n, valid, D, GROUP, GROUP_PAD)


@triton.jit
def _segment(segments_ptr, segment):
    record = segments_ptr + segment * RECORD
    begin = tl.load(record)
    gap = tl.load(record + 1)
    leaves = tl.load(record + 2)
    row = tl.load(record + 3)
    rows = tl.load(record + 4)
    position = tl.load(record + 5)
    slot = tl.load(record + 6)
    return begin, gap, leaves, row, rows, position, slot


@triton.jit(do_not_specialize=["window", "EXTENT", "MAX_SEGMENTS", "SINGLES"])
def attend(
    q_ptr,
    r_ptr,
    bank_ptr,
    k_ptr,
    v_ptr,
    k_table_ptr,
    v_table_ptr,
    out_ptr,
    plan_ptr,
    parts_ptr,
    counts_ptr,
    scale,
    log_alpha,
    log_floor,
    window,
    EXTENT,
    capacity,
    pinned,
    stride_q,
    stride_r,
    stride_c,
    stride_d,
    stride_out,
    MAX_SEGMENTS,
    SINGLES,
    H: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    MERGE_Q: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SINKS: tl.constexpr,
    BIAS: tl.constexpr,
    TAU: tl.constexpr,
    PREFIX: tl.constexpr,
    STAGES: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    """One range of leaves for one kv head, keys on the M side of the matrix instruction.

    A leaf is worked on alone and then folded into its group, so that it does not matter whether
    the program that does it holds the group so far. PREFIX: groups that follow the first of their
    segment in one program are folded in registers; a whole segment needs no workspace then.
    TILE_ROWS: rows that a tile has at most in this launch.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    GROUP: tl.constexpr = H // HKV
    SINK_LEAVES: tl.constexpr = (SINKS + LEAF - 1) // LEAF
    SINK_GROUPS: tl.constexpr = (SINK_LEAVES + GROUP_LEAVES - 1) // GROUP_LEAVES
    index = tl.program_id(0) // HKV
    head = tl.program_id(0) % HKV
    segments_ptr = plan_ptr + HEAD
    idle_ptr = segments_ptr + MAX_SEGMENTS * RECORD
    segment = tl.load(idle_ptr + (MAX_SEGMENTS + 1) * RECORD + index)
    num_leaves = tl.load(plan_ptr)
    per = tl.load(plan_ptr + 1)
    num_idle = tl.load(plan_ptr + 3)
    start = index * per
    stop = tl.minimum(start + per, num_leaves)
    first_segment = segment

    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_Q)
    key = tl.arange(0, 128)
    row_of_n = n // GROUP_PAD
    is_head = n % GROUP_PAD < GROUP
    head_of_n = head * GROUP + tl.minimum(n % GROUP_PAD, GROUP - 1)
    # So many to an element that a thread loads 16 bytes and has what the matrix unit takes of it.
    KEYS: tl.constexpr = 4 if FP8 else 1
    VALUES: tl.constexpr = 2 if FP8 else 1
    K_D: tl.constexpr = D // KEYS
    V_D: tl.constexpr = D // VALUES
    k_d = tl.arange(0, BLOCK_D // KEYS)
    v_d = tl.arange(0, BLOCK_D // VALUES)
    g_top = tl.full((BLOCK_Q,), NOTHING, tl.float32)
    g_total = tl.zeros((BLOCK_Q,), tl.float32)
    g_acc = tl.zeros((BLOCK_D, BLOCK_Q), tl.float32)
    if PREFIX:
        top = tl.full((BLOCK_Q,), NOTHING, tl.float32)
        total = tl.zeros((BLOCK_Q,), tl.float32)
        acc = tl.zeros((BLOCK_D, BLOCK_Q), tl.float32)

    # A segment's numbers are carried, and loaded where it begins: were they loaded for every leaf,
    # the pipeliner would spend its stages on them instead of on keys and values.
    begin, gap, leaves, row, rows, position, arena_slot = _segment(segments_ptr, segment)
    for f in tl.range(start, stop, num_stages=STAGES):
        if f == begin + leaves:
            segment += 1
            begin, gap, leaves, row, rows, position, arena_slot = _segment(segments_ptr, segment)
        leaf = _spread(f - begin, SINK_LEAVES, gap)
        first_key = leaf * LEAF

        # A key that no row of the tile sees may be a former tenant's: one that is seen is read.
        lowest = tl.maximum(position - window + 1, 0) - first_key
        highest = position + rows - 1 - first_key
        seen = tl.maximum(key, lowest)
        if SINKS > 0:
            seen = tl.where(key < SINKS - first_key, key, seen)
            highest = tl.where(lowest < LEAF, highest, SINKS - first_key - 1)
        seen = tl.minimum(seen, highest)
        k_at, v_at = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
        if f < stop:
            k_at = kv_row(arena_slot, first_key, k_table_ptr, capacity, pinned, PAGE_SIZE)
            v_at = kv_row(arena_slot, first_key, v_table_ptr, capacity, pinned, PAGE_SIZE)
        k_rows = k_ptr + (k_at * HKV + head) * K_D + (seen * (HKV * K_D))[:, None]
        v_rows = v_ptr + (v_at * HKV + head) * V_D + (seen * (HKV * V_D))[:, None]
        q_row = row + tl.minimum(row_of_n, rows - 1)
        q_rows = q_ptr + q_row.to(tl.int64)[:, None] * stride_q + (head_of_n * D)[:, None]
        if D == BLOCK_D:
            k = tl.load(k_rows + k_d[None, :])
            v = tl.load(v_rows + v_d[None, :])
            q = tl.load(q_rows + d[None, :])
        else:
            k = tl.load(k_rows + k_d[None, :], mask=(k_d < K_D)[None, :], other=0)
            v = tl.load(v_rows + v_d[None, :], mask=(v_d < V_D)[None, :], other=0)
            q = tl.load(q_rows + d[None, :], mask=(d < D)[None, :], other=0.0)

        distance = position - first_key - key
        if FP8:
            # The first two of every four products, then the last two.
            k_first, k_last = from_e4m3_quads(k, q.dtype, PDL)
            halves = q.reshape(BLOCK_Q, BLOCK_D // 4, 2, 2).permute(0, 1, 3, 2)
            q_first, q_last = halves.split()
            q_first = tl.trans(q_first.reshape(BLOCK_Q, BLOCK_D // 2))
            q_last = tl.trans(q_last.reshape(BLOCK_Q, BLOCK_D // 2))
            logits = tl.dot(k_first, q_first, input_precision="ieee")
            logits = tl.dot(k_last, q_last, logits, input_precision="ieee") * scale
            v = from_e4m3_pairs(v, q.dtype, PDL)
        else:
            logits = tl.dot(k.to(q.dtype), tl.trans(q), input_precision="ieee") * scale
        if BIAS:  # noqa: SIM102 (known when compiled)
            if position - first_key - (LEAF - 1) < EXTENT:
                logits += _bias(
                    r_ptr,
                    bank_ptr,
                    q_row * stride_r + head_of_n * REL,
                    distance,
                    stride_c,
                    stride_d,
                    row_of_n,
                    is_head & (row_of_n < rows),
                    EXTENT,
                    REL,
                    BLOCK_R,
                    TILE_ROWS,
                    BLOCK_Q,
                )
        if TAU:
            visible = tl.minimum(position + row_of_n + 1, window + SINKS).to(tl.float32)
            tau = 1.0 + log_alpha * tl.log(tl.maximum(visible / log_floor, 1.0))
            logits = logits * (tau * LOG2E)[None, :]
        else:
            logits = logits * LOG2E
        away = distance[:, None] + row_of_n[None, :]
        near = away < window
        if SINKS > 0:
            near = near | (key < SINKS - first_key)[:, None]
        logits = tl.where((away >= 0) & near, logits, float("-inf"))

        l_top = tl.maximum(tl.max(logits, 0), NOTHING)
        shares = tl.exp2(logits - l_top[None, :])
        l_total = tl.sum(shares, 0)
        l_acc = tl.dot(tl.trans(v.to(q.dtype)), shares.to(q.dtype), input_precision="ieee")
        g_top, g_total, g_acc = fold(g_top, g_total, g_acc, l_top, l_total, l_acc)

        segment_end = f == begin + leaves - 1
        range_end = f == stop - 1
        group_end = (leaf % GROUP_LEAVES == GROUP_LEAVES - 1) | segment_end
        if SINKS > 0:
            following = _spread(f - begin + 1, SINK_LEAVES, gap)
            group_end = group_end | (following // GROUP_LEAVES > leaf // GROUP_LEAVES)
        group_first = begin + _packed(leaf - leaf % GROUP_LEAVES, SINK_LEAVES, gap)
        single = group_first < start
        if group_end | range_end | single:
            slot = tl.load(segments_ptr + segment * RECORD + 7)
            group_gap = _group_gap(gap, SINK_LEAVES, SINK_GROUPS)
            group = _packed(leaf // GROUP_LEAVES, SINK_GROUPS, group_gap)
            valid = is_head & (row_of_n < rows)
            whole = False
            if PREFIX:
                whole = begin >= start
            if whole:
                if PREFIX:
                    if group_end:
                        top, total, acc = fold(top, total, acc, g_top, g_total, g_acc)
                    if segment_end:
                        _answer(
                            out_ptr,
                            stride_out,
                            total,
                            acc,
                            row,
                            head,
                            d,
                            n,
                            valid,
                            D,
                            GROUP,
                            GROUP_PAD,
                        )
                    else:
                        if range_end:
                            if group + group_end.to(tl.int32) > 0:
                                _put(parts_ptr, slot, head, HKV, D, top, total, acc, d, n, valid)
                            if group_end == 0:
                                at = slot + group
                                _put(
                                    parts_ptr, at, head, HKV, D, g_top, g_total, g_acc, d, n, valid
                                )
                    if segment_end:
                        top = tl.full((BLOCK_Q,), NOTHING, tl.float32)
                        total = tl.zeros((BLOCK_Q,), tl.float32)
                        acc = tl.zeros((BLOCK_D, BLOCK_Q), tl.float32)
            else:
                alone = SINGLES + index * (GROUP_LEAVES - 1) + f - start
                at = tl.where(single, alone, slot + group)
                _put(parts_ptr, at, head, HKV, D, g_top, g_total, g_acc, d, n, valid)
            g_top = tl.full((BLOCK_Q,), NOTHING, tl.float32)
            g_total = tl.zeros((BLOCK_Q,), tl.float32)
            g_acc = tl.zeros((BLOCK_D, BLOCK_Q), tl.float32)

    if start < stop:
        # Every segment it has a part of, unless it has all of it and has answered already.
        for s in range(first_segment, segment + 1):
            record = segments_ptr + s * RECORD
            begin = tl.load(record)
            gap = tl.load(record + 1)
            leaves = tl.load(record + 2)
            end = begin + leaves
            mine = True
            if PREFIX:
                mine = (begin < start) | (end > stop)
            if mine:
                expected = (end - 1) // per - begin // per
                count = counts_ptr + s * HKV + head
                tl.debug_barrier()
                arrived = tl.atomic_add(count, 1, sem="acq_rel", scope="gpu")
                if arrived == expected:
                    _merge_segment(
                        parts_ptr,
                        out_ptr,
                        stride_out,
                        begin,
                        gap,
                        leaves,
                        tl.load(record + 3),
                        tl.load(record + 4),
                        tl.load(record + 7),
                        per,
                        SINGLES,
                        head,
                        HKV,
                        D,
                        BLOCK_D,
                        GROUP,
                        GROUP_PAD,
                        TILE_ROWS,
                        BLOCK_Q,
                        MERGE_Q,
                        SINK_LEAVES,
                        SINK_GROUPS,
                        PREFIX,
                    )
                    tl.store(count, 0)

    for i in range(index, num_idle, tl.num_programs(0) // HKV):
        at = tl.load(idle_ptr + i * RECORD)
        end = at + tl.load(idle_ptr + i * RECORD + 1)
        for t in range(at, end):
            for h in tl.static_range(GROUP):
                place = out_ptr + tl.cast(t, tl.int64) * stride_out + (head * GROUP + h) * D + d
                tl.store(place, tl.zeros((BLOCK_D,), out_ptr.dtype.element_ty), mask=d < D)
