"""The Triton kernels of grouped_experts.

x_ptr      [T, H], stride_x between rows
w13        [E, 2 * INNER, H] of the routed experts, shared_w13 [SH, 2 * INNER, H]; rows
           alternate gate and up
w2         [E, H, INNER], shared_w2 [SH, H, INNER]
           each with strides between experts and between rows; 8 bits: int16, two e4m3 each, and
           scales, one byte a row and 128 inputs, with strides of their own
a_ptr      [T * A + SH * T, INNER]: what gate and up made: pairs by place, then the rows of each
           shared expert; INNER is the I of DESIGN 6
parts_ptr  [T, A + SH, H]: what each choice of a row adds to it, weighted
out_ptr    [T, H], stride_out between rows
chosen_ptr [T, A] fp32, shared_ptr [T, SH], any float dtype and strides: weights of a row's choices
offsets, slots, exec: the lines, see kernels/device/rows.py; LINES a power of two >= B, 0: all run
counts_ptr one int32 for each BLOCK_N of H, zero before and after
size, tiles, pairs: see kernels/device/experts.py
FEW_T      expert tiles of so few rows multiply no more of them; BLOCK_T: all alike

Two layouts of a product. In a decode step the weights are on the M side of the matrix instruction,
64 rows or more, and 16 rows of x and more on its N side. In a prefill step rows are on the M side.
Weights come by the copy engine: w13_desc, w2_desc and shared_desc describe them, a tile a box, and
the pointers beside them serve to ask for a tile before it may be used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.experts import list_experts, list_tiles, place_pairs, rows_run
from microturn.kernels.device.numbers import silu
from microturn.kernels.device.prefetch import prefetch_l2
from microturn.kernels.device.stream import weights_times_rows


@triton.jit
def _gate_up(
    x_row,
    x_in,
    w_desc,
    expert,
    scales_ptr,
    stride_s,
    tile_n,
    a_row,
    a_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    """Rows of x through one tile of one expert's w13, to their rows of a."""
    n = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), 2 * INNER - 1)
    acc = weights_times_rows(
        w_desc, expert, tile_n * BLOCK_N, scales_ptr + n * stride_s, x_row, x_in, 0,
        H, (H + BLOCK_K - 1) // BLOCK_K, FP8, BLOCK_N, BLOCK_T, BLOCK_K, STAGES, ASM,
    )  # fmt: skip
    gate, up = acc.reshape(BLOCK_N // 2, 2, BLOCK_T).permute(0, 2, 1).split()
    a = silu(gate) * up
    i = tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    inside = (i < INNER)[:, None] & x_in[None, :]
    tl.store(a_ptr + a_row[None, :] * INNER + i[:, None], a.to(a_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gate_up_pairs(
    x_ptr,
    stride_x,
    w_desc,
    expert,
    scales_ptr,
    stride_s,
    first,
    count,
    tile_n,
    pairs_ptr,
    a_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    """A run of `count` pairs, at most BLOCK_T, from place `first` on."""
    r = tl.arange(0, BLOCK_T)
    place = first + tl.minimum(r, count - 1)
    row = tl.load(pairs_ptr + place) // A
    _gate_up(
        x_ptr + row.to(tl.int64) * stride_x, r < count, w_desc, expert, scales_ptr, stride_s,
        tile_n, place.to(tl.int64), a_ptr, H, INNER, FP8, BLOCK_N, BLOCK_T, BLOCK_K, STAGES, ASM,
    )  # fmt: skip


@triton.jit
def gate_up_decode(
    x_ptr,
    w13_desc,
    scales_ptr,
    shared_desc,
    shared_w13_ptr,
    shared_scales_ptr,
    a_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    T,
    stride_x,
    stride_se,
    stride_sn,
    stride_she,
    stride_shn,
    stride_shse,
    stride_shsn,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    SH: tl.constexpr,
    FP8: tl.constexpr,
    SHARED_FP8: tl.constexpr,
    EARLY: tl.constexpr,
    LINE: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FEW_T: tl.constexpr,
    BLOCK_SHARED_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """a = silu(gate) * up. Programs: shared experts, tiles of w13, blocks of rows; then expert
    tiles, tiles of w13. Weights are read once for each block of rows.

    EARLY: x was complete before this launch could start, so shared experts' programs do not wait;
    else they ask for AHEAD cache lines of LINE inputs of each row of weights before they do.
    """
    TILES_N: tl.constexpr = (2 * INNER + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    blocks = (T + BLOCK_SHARED_T - 1) // BLOCK_SHARED_T
    routed = pid - SH * TILES_N * blocks
    if routed < 0:
        # Row blocks of one tile side by side: they share its weights in L2.
        tile_n = pid // blocks % TILES_N
        expert = pid // blocks // TILES_N
        if PDL and not EARLY:
            n = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), 2 * INNER - 1)
            line = tl.minimum(tl.arange(0, AHEAD) * LINE, (H // 2 if SHARED_FP8 else H) - 1)
            w = shared_w13_ptr + expert.to(tl.int64) * stride_she
            prefetch_l2(w + n[:, None].to(tl.int64) * stride_shn + line[None, :])
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        t = pid % blocks * BLOCK_SHARED_T + tl.arange(0, BLOCK_SHARED_T)
        x_row = x_ptr + tl.minimum(t, T - 1).to(tl.int64) * stride_x
        a_row = tl.cast(T, tl.int64) * A + expert.to(tl.int64) * T + t
        _gate_up(
            x_row, t < T, shared_desc, expert,
            shared_scales_ptr + expert.to(tl.int64) * stride_shse, stride_shsn, tile_n, a_row,
            a_ptr, H, INNER, SHARED_FP8, BLOCK_N, BLOCK_SHARED_T, BLOCK_K, STAGES, PDL,
        )  # fmt: skip
    elif A > 0:
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        tile = routed // TILES_N
        if tile < tl.load(size_ptr):
            expert = tl.load(tiles_ptr + tile * 4)
            first = tl.load(tiles_ptr + tile * 4 + 1)
            count = tl.load(tiles_ptr + tile * 4 + 2)
            s = scales_ptr + expert.to(tl.int64) * stride_se
            if count <= FEW_T:
                _gate_up_pairs(
                    x_ptr, stride_x, w13_desc, expert, s, stride_sn, first, count, routed % TILES_N,
                    pairs_ptr, a_ptr, H, INNER, A, FP8, BLOCK_N, FEW_T, BLOCK_K, STAGES, PDL,
                )  # fmt: skip
            elif FEW_T < BLOCK_T:
                _gate_up_pairs(
                    x_ptr, stride_x, w13_desc, expert, s, stride_sn, first, count, routed % TILES_N,
                    pairs_ptr, a_ptr, H, INNER, A, FP8, BLOCK_N, BLOCK_T, BLOCK_K, STAGES, PDL,
                )  # fmt: skip


@triton.jit
def _down(
    a_row,
    a_in,
    w_desc,
    expert,
    scales_ptr,
    stride_s,
    tile_n,
    share,
    part_row,
    parts_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    """Rows of a through one tile of one expert's w2, weighted, to their parts."""
    h = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.minimum(h, H - 1)
    acc = weights_times_rows(
        w_desc, expert, tile_n * BLOCK_N, scales_ptr + n * stride_s, a_row, a_in, 0,
        INNER, (INNER + BLOCK_K - 1) // BLOCK_K, FP8, BLOCK_N, BLOCK_T, BLOCK_K, STAGES, ASM,
    )  # fmt: skip
    inside = (h < H)[:, None] & a_in[None, :]
    part = parts_ptr + part_row[None, :] * H + h[:, None]
    tl.store(part, (acc * share[None, :]).to(parts_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _down_pairs(
    a_ptr,
    w_desc,
    expert,
    scales_ptr,
    stride_s,
    first,
    count,
    tile_n,
    pairs_ptr,
    chosen_ptr,
    parts_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    CHOICES: tl.constexpr,
    FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ASM: tl.constexpr,
):
    """A run of `count` pairs, at most BLOCK_T, from place `first` on."""
    r = tl.arange(0, BLOCK_T)
    place = first + tl.minimum(r, count - 1)
    pair = tl.load(pairs_ptr + place)
    part_row = (pair // A).to(tl.int64) * CHOICES + pair % A
    _down(
        a_ptr + place.to(tl.int64) * INNER, r < count, w_desc, expert, scales_ptr, stride_s,
        tile_n, tl.load(chosen_ptr + pair), part_row, parts_ptr, H, INNER, FP8, BLOCK_N, BLOCK_T,
        BLOCK_K, STAGES, ASM,
    )  # fmt: skip


@triton.jit
def _combine(
    t,
    h,
    parts_ptr,
    out_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    B,
    T,
    stride_out,
    H: tl.constexpr,
    CHOICES: tl.constexpr,
    LINES: tl.constexpr,
    CACHE: tl.constexpr,
):
    """out = the parts of each row, first to last, zeros where it does not run: [t, h]."""
    inside = (t < T)[:, None] & (h < H)[None, :]
    runs = t < T
    if LINES > 0:
        runs = runs & rows_run(t, offsets_ptr, slots_ptr, exec_ptr, B, LINES)
    read = inside & runs[:, None]
    part = parts_ptr + t.to(tl.int64)[:, None] * (CHOICES * H) + h[None, :]
    total = tl.load(part, mask=read, other=0.0, cache_modifier=CACHE).to(tl.float32)
    for choice in tl.static_range(1, CHOICES):
        total += tl.load(part + choice * H, mask=read, other=0.0, cache_modifier=CACHE).to(
            tl.float32
        )
    out = out_ptr + t.to(tl.int64)[:, None] * stride_out + h[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def down_decode(
    a_ptr,
    w2_desc,
    w2_ptr,
    scales_ptr,
    shared_desc,
    shared_w2_ptr,
    shared_scales_ptr,
    parts_ptr,
    out_ptr,
    chosen_ptr,
    shared_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    counts_ptr,
    T,
    stride_e,
    stride_n,
    stride_se,
    stride_sn,
    stride_she,
    stride_shn,
    stride_shse,
    stride_shsn,
    stride_out,
    stride_t,
    stride_s,
    B,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    SH: tl.constexpr,
    FP8: tl.constexpr,
    SHARED_FP8: tl.constexpr,
    LINE: tl.constexpr,
    AHEAD: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FEW_T: tl.constexpr,
    BLOCK_SHARED_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COMBINE_T: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = w2 @ a, weighted and added in the order of the choices, the shared experts last.

    Programs as in gate_up_decode. The last to arrive at a tile of H adds what all have left there,
    COMBINE_T rows at a time (0: another launch adds).
    LINE inputs are a cache line of weights; AHEAD of them are asked for before a is complete.
    """
    TILES_N: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    CHOICES: tl.constexpr = A + SH
    pid = tl.program_id(0)
    blocks = (T + BLOCK_SHARED_T - 1) // BLOCK_SHARED_T
    shared_programs = SH * TILES_N * blocks
    routed = pid - shared_programs
    tile_n = routed % TILES_N
    n = tl.arange(0, BLOCK_N)
    line = tl.minimum(tl.arange(0, AHEAD) * LINE, (INNER // 2 if FP8 or SHARED_FP8 else INNER) - 1)
    arrivals = SH * blocks
    here = True
    if A > 0:
        # The list was complete before the launch before this one let it start: no wait.
        size = tl.load(size_ptr, cache_modifier=".cg")
        arrivals += tl.maximum(size, 1)
        here = routed < tl.maximum(size, 1) * TILES_N
    if here:
        if routed < 0:
            tile_n = pid // blocks % TILES_N
            expert = pid // blocks // TILES_N
            if PDL:
                w = shared_w2_ptr + expert.to(tl.int64) * stride_she
                h = tl.minimum(tile_n * BLOCK_N + n, H - 1).to(tl.int64)
                prefetch_l2(w + h[:, None] * stride_shn + line[None, :])
                tl.extra.cuda.gdc_wait()
                tl.extra.cuda.gdc_launch_dependents()
            t = pid % blocks * BLOCK_SHARED_T + tl.arange(0, BLOCK_SHARED_T)
            row = tl.minimum(t, T - 1).to(tl.int64)
            share = tl.load(shared_ptr + row * stride_t + expert * stride_s).to(tl.float32)
            _down(
                a_ptr + (tl.cast(T, tl.int64) * A + expert.to(tl.int64) * T + row) * INNER, t < T,
                shared_desc, expert, shared_scales_ptr + expert.to(tl.int64) * stride_shse,
                stride_shsn, tile_n, share, row * CHOICES + A + expert, parts_ptr,
                H, INNER, SHARED_FP8, BLOCK_N, BLOCK_SHARED_T, BLOCK_K, STAGES, PDL,
            )  # fmt: skip
        elif A > 0:
            tile = routed // TILES_N
            expert = tl.load(tiles_ptr + tile * 4, mask=tile < size, other=0, cache_modifier=".cg")
            first = tl.load(
                tiles_ptr + tile * 4 + 1, mask=tile < size, other=0, cache_modifier=".cg"
            )
            count = tl.load(
                tiles_ptr + tile * 4 + 2, mask=tile < size, other=0, cache_modifier=".cg"
            )
            s = scales_ptr + expert.to(tl.int64) * stride_se
            if PDL:
                if tile < size:
                    w = w2_ptr + expert.to(tl.int64) * stride_e
                    h = tl.minimum(tile_n * BLOCK_N + n, H - 1).to(tl.int64)
                    prefetch_l2(w + h[:, None] * stride_n + line[None, :])
                tl.extra.cuda.gdc_wait()
                tl.extra.cuda.gdc_launch_dependents()
            if tile < size:
                if count <= FEW_T:
                    _down_pairs(
                        a_ptr, w2_desc, expert, s, stride_sn, first, count, tile_n, pairs_ptr,
                        chosen_ptr, parts_ptr, H, INNER, A, CHOICES, FP8, BLOCK_N, FEW_T, BLOCK_K,
                        STAGES, PDL,
                    )  # fmt: skip
                elif FEW_T < BLOCK_T:
                    _down_pairs(
                        a_ptr, w2_desc, expert, s, stride_sn, first, count, tile_n, pairs_ptr,
                        chosen_ptr, parts_ptr, H, INNER, A, CHOICES, FP8, BLOCK_N, BLOCK_T, BLOCK_K,
                        STAGES, PDL,
                    )  # fmt: skip
        if COMBINE_T > 0:
            tl.debug_barrier()
            arrived = tl.atomic_add(counts_ptr + tile_n, 1, sem="acq_rel", scope="gpu")
            if arrived == arrivals - 1:
                columns = tile_n * BLOCK_N + n
                for start in range(0, T, COMBINE_T):
                    t = start + tl.arange(0, COMBINE_T)
                    _combine(
                        t,
                        columns,
                        parts_ptr,
                        out_ptr,
                        offsets_ptr,
                        slots_ptr,
                        exec_ptr,
                        B,
                        T,
                        stride_out,
                        H,
                        CHOICES,
                        LINES,
                        ".cg",
                    )
                tl.store(counts_ptr + tile_n, 0)


@triton.jit
def _rows_times_weights(
    x_row,
    x_in,
    w_desc,
    expert,
    row_n,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """[BLOCK_T, BLOCK_N] fp32 of rows of x (pointers [BLOCK_T]) and rows row_n on of one expert."""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        at = start + k
        mask = x_in[:, None]
        if K % BLOCK_K != 0:
            mask = mask & (at < K)[None, :]
        x = tl.load(x_row[:, None] + at[None, :], mask=mask, other=0.0)
        w = w_desc.load([expert, row_n, start]).reshape(BLOCK_N, BLOCK_K)
        acc = tl.dot(x, w.T, acc, input_precision="ieee")
    return acc


@triton.jit
def _gate_up_rows(
    x_row,
    a_row,
    inside,
    w_desc,
    expert,
    tile_n,
    a_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows of x (pointers [BLOCK_T]) through one tile of one expert's w13, to their rows of a."""
    acc = _rows_times_weights(
        x_row, inside, w_desc, expert, tile_n * BLOCK_N, H, BLOCK_T, BLOCK_N, BLOCK_K, STAGES
    )
    gate, up = acc.reshape(BLOCK_T, BLOCK_N // 2, 2).split()
    i = tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    a = (silu(gate) * up).to(a_ptr.dtype.element_ty)
    at = a_ptr + a_row[:, None] * INNER + i[None, :]
    tl.store(at, a, mask=inside[:, None] & (i < INNER)[None, :])


@triton.jit
def _gate_up_run(
    x_ptr,
    stride_x,
    w_desc,
    expert,
    first,
    count,
    tile_n,
    pairs_ptr,
    a_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A run of `count` pairs, at most BLOCK_T, from place `first` on."""
    r = tl.arange(0, BLOCK_T)
    a_row = (first + tl.minimum(r, count - 1)).to(tl.int64)
    row = (tl.load(pairs_ptr + a_row) // A).to(tl.int64)
    _gate_up_rows(
        x_ptr + row * stride_x, a_row, r < count, w_desc, expert, tile_n, a_ptr,
        H, INNER, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip


@triton.jit
def gate_up_prefill(
    x_ptr,
    w13_desc,
    shared_desc,
    a_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    T,
    stride_x,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    SH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FEW_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """a = silu(gate) * up: persistent over expert tiles, then over shared experts' blocks of rows;
    tiles of w13 inside, so that they share their rows in L2.
    """
    TILES_N: tl.constexpr = (2 * INNER + BLOCK_N - 1) // BLOCK_N
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    begin = tl.program_id(0)
    programs = tl.num_programs(0)
    if A > 0:
        routed = tl.load(size_ptr) * TILES_N
        for work in range(begin, routed, programs):
            tile = tiles_ptr + work // TILES_N * 4
            expert, first, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
            if count <= FEW_T:
                _gate_up_run(
                    x_ptr, stride_x, w13_desc, expert, first, count, work % TILES_N, pairs_ptr,
                    a_ptr, H, INNER, A, FEW_T, BLOCK_N, BLOCK_K, STAGES,
                )  # fmt: skip
            elif FEW_T < BLOCK_T:
                _gate_up_run(
                    x_ptr, stride_x, w13_desc, expert, first, count, work % TILES_N, pairs_ptr,
                    a_ptr, H, INNER, A, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
                )  # fmt: skip
        begin = (begin + programs - routed % programs) % programs
    if SH > 0:
        blocks = (T + BLOCK_T - 1) // BLOCK_T
        for work in range(begin, SH * blocks * TILES_N, programs):
            expert = work // TILES_N // blocks
            t = work // TILES_N % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
            row = tl.minimum(t, T - 1).to(tl.int64)
            _gate_up_rows(
                x_ptr + row * stride_x, tl.cast(T, tl.int64) * A + expert.to(tl.int64) * T + row,
                t < T, shared_desc, expert, work % TILES_N, a_ptr,
                H, INNER, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
            )  # fmt: skip


@triton.jit
def _down_rows(
    a_row,
    share,
    part_row,
    inside,
    w_desc,
    expert,
    tile_n,
    parts_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows of a (pointers [BLOCK_T]) through one tile of one expert's w2, weighted, to parts."""
    acc = _rows_times_weights(
        a_row, inside, w_desc, expert, tile_n * BLOCK_N, INNER, BLOCK_T, BLOCK_N, BLOCK_K, STAGES
    )
    h = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y = (acc * share[:, None]).to(parts_ptr.dtype.element_ty)
    at = parts_ptr + part_row[:, None] * H + h[None, :]
    tl.store(at, y, mask=inside[:, None] & (h < H)[None, :])


@triton.jit
def _down_run(
    a_ptr,
    w_desc,
    expert,
    first,
    count,
    tile_n,
    pairs_ptr,
    chosen_ptr,
    parts_ptr,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    CHOICES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A run of `count` pairs, at most BLOCK_T, from place `first` on."""
    r = tl.arange(0, BLOCK_T)
    a_row = (first + tl.minimum(r, count - 1)).to(tl.int64)
    pair = tl.load(pairs_ptr + a_row)
    part_row = (pair // A).to(tl.int64) * CHOICES + pair % A
    _down_rows(
        a_ptr + a_row * INNER, tl.load(chosen_ptr + pair), part_row, r < count, w_desc, expert,
        tile_n, parts_ptr, H, INNER, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip


@triton.jit
def down_prefill(
    a_ptr,
    w2_desc,
    shared_desc,
    parts_ptr,
    chosen_ptr,
    shared_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    T,
    stride_t,
    stride_s,
    H: tl.constexpr,
    INNER: tl.constexpr,
    A: tl.constexpr,
    SH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FEW_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """parts = w2 @ a, weighted; programs and tiles as in gate_up_prefill."""
    TILES_N: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    CHOICES: tl.constexpr = A + SH
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    begin = tl.program_id(0)
    programs = tl.num_programs(0)
    if A > 0:
        routed = tl.load(size_ptr) * TILES_N
        for work in range(begin, routed, programs):
            tile = tiles_ptr + work // TILES_N * 4
            expert, first, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
            if count <= FEW_T:
                _down_run(
                    a_ptr, w2_desc, expert, first, count, work % TILES_N, pairs_ptr, chosen_ptr,
                    parts_ptr, H, INNER, A, CHOICES, FEW_T, BLOCK_N, BLOCK_K, STAGES,
                )  # fmt: skip
            elif FEW_T < BLOCK_T:
                _down_run(
                    a_ptr, w2_desc, expert, first, count, work % TILES_N, pairs_ptr, chosen_ptr,
                    parts_ptr, H, INNER, A, CHOICES, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
                )  # fmt: skip
        begin = (begin + programs - routed % programs) % programs
    if SH > 0:
        blocks = (T + BLOCK_T - 1) // BLOCK_T
        for work in range(begin, SH * blocks * TILES_N, programs):
            expert = work // TILES_N // blocks
            t = work // TILES_N % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
            row = tl.minimum(t, T - 1).to(tl.int64)
            share = tl.load(shared_ptr + row * stride_t + expert * stride_s).to(tl.float32)
            a_row = tl.cast(T, tl.int64) * A + expert.to(tl.int64) * T + row
            _down_rows(
                a_ptr + a_row * INNER, share, row * CHOICES + A + expert, t < T, shared_desc,
                expert, work % TILES_N, parts_ptr, H, INNER, BLOCK_T, BLOCK_N, BLOCK_K, STAGES,
            )  # fmt: skip


@triton.jit
def combine_parts(
    parts_ptr,
    out_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    T,
    stride_out,
    B,
    H: tl.constexpr,
    CHOICES: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = the parts of each row, first to last."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    _combine(
        t,
        h,
        parts_ptr,
        out_ptr,
        offsets_ptr,
        slots_ptr,
        exec_ptr,
        B,
        T,
        stride_out,
        H,
        CHOICES,
        LINES,
        "",
    )


@triton.jit
def _mark_pairs(
    p,
    topk_ids_ptr,
    experts_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    P,
    B,
    E: tl.constexpr,
    A: tl.constexpr,
    LINES: tl.constexpr,
):
    """Writes the experts of pairs p, E where the row does not run."""
    row = p // A
    runs = p < P
    if LINES > 0:
        runs = runs & rows_run(row, offsets_ptr, slots_ptr, exec_ptr, B, LINES)
    ids = tl.load(topk_ids_ptr + p, mask=runs, other=E)
    tl.store(experts_ptr + p, ids, mask=p < P)
    return ids


@triton.jit
def list_pairs(
    topk_ids_ptr,
    experts_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    size_ptr,
    tiles_ptr,
    pairs_ptr,
    P,
    B,
    E: tl.constexpr,
    A: tl.constexpr,
    LINES: tl.constexpr,
    BINS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The list of a decode step, by one program, where the router has not left one."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for start in range(0, P, CHUNK):
        _mark_pairs(
            start + tl.arange(0, CHUNK),
            topk_ids_ptr,
            experts_ptr,
            offsets_ptr,
            slots_ptr,
            exec_ptr,
            P,
            B,
            E,
            A,
            LINES,
        )
    tl.debug_barrier()
    list_experts(experts_ptr, size_ptr, tiles_ptr, pairs_ptr, P, E, BINS, TILE_ROWS, CHUNK)


@triton.jit
def count_pairs(
    topk_ids_ptr,
    experts_ptr,
    offsets_ptr,
    slots_ptr,
    exec_ptr,
    size_ptr,
    tiles_ptr,
    firsts_ptr,
    counts_ptr,
    P,
    B,
    E: tl.constexpr,
    A: tl.constexpr,
    LINES: tl.constexpr,
    BINS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Counts the pairs of each expert in SPAN of them; the last program lists the tiles and turns
    the counts `firsts_ptr [programs, BINS]` into the first place of each expert in each span.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    e = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, SPAN, CHUNK):
        p = tl.program_id(0) * SPAN + start + tl.arange(0, CHUNK)
        ids = _mark_pairs(
            p,
            topk_ids_ptr,
            experts_ptr,
            offsets_ptr,
            slots_ptr,
            exec_ptr,
            P,
            B,
            E,
            A,
            LINES,
        )
        counts += tl.histogram(ids, BINS)
    tl.store(firsts_ptr + tl.program_id(0) * BINS + e, counts)
    tl.debug_barrier()
    spans = tl.num_programs(0)
    arrived = tl.atomic_add(counts_ptr, 1, sem="acq_rel", scope="gpu")
    if arrived == spans - 1:
        tl.store(counts_ptr, 0)
        r = tl.arange(0, ROWS)
        total = tl.zeros((BINS,), tl.int32)
        for start in range(0, spans, ROWS):
            at = firsts_ptr + (start + r)[:, None] * BINS + e[None, :]
            mask = (start + r < spans)[:, None] & (e < E)[None, :]
            total += tl.sum(tl.load(at, mask=mask, other=0, cache_modifier=".cg"), axis=0)
        following = list_tiles(total, size_ptr, tiles_ptr, E, BINS, TILE_ROWS)
        for start in range(0, spans, ROWS):
            at = firsts_ptr + (start + r)[:, None] * BINS + e[None, :]
            mask = (start + r < spans)[:, None] & (e < E)[None, :]
            some = tl.load(at, mask=mask, other=0, cache_modifier=".cg")
            tl.store(at, following[None, :] + tl.cumsum(some, axis=0) - some, mask=mask)
            following += tl.sum(some, axis=0)


@triton.jit
def place_spans(
    experts_ptr,
    firsts_ptr,
    pairs_ptr,
    P,
    E: tl.constexpr,
    BINS: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Places the pairs of one span."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    begin = tl.program_id(0) * SPAN
    e = tl.arange(0, BINS)
    following = tl.load(firsts_ptr + tl.program_id(0) * BINS + e, mask=e < E, other=0)
    place_pairs(experts_ptr, pairs_ptr, following, begin, min(begin + SPAN, P), P, E, BINS, CHUNK)
