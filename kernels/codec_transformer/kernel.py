# ruff: noqa: SIM109  (Triton knows no `in`)
"""The Triton kernel of codec_transformer: all layers in one cooperative launch.

T rows of width D = HEADS * HEAD_DIM in B lines, F values inside, WINDOW keys.

table_ptr   [layers, 14] int64: addresses of each layer's norm1_gain, norm1_bias, in_proj, out_proj,
            scale1, norm2_gain, norm2_bias, ff_in, ff_out, scale2, k, v and the page tables of k and
            v; a table, since the layers of a model are tensors of their own
input_ptr   [T, D], stride_input between rows; y_ptr [T, D], stride_y: the result
slots_ptr, offsets_ptr, exec_ptr, positions_ptr: see `RowBatch`
turns_ptr   [HEAD_DIM / 2] fp64: turns a position makes each pair go round
k_like_ptr, page_like_ptr: any pointers of the arenas' dtype and of the page tables'
counter_ptr one int32 of the grid barrier, zero before and after

Between stages:
x_ptr       [T, D]                the residual stream
sums_ptr    [2, D / 16, T] fp32   sums of 16 values of x each, and of their squares
q_ptr       [T, D]                queries, turned
heard_ptr   [T, D]                what attention gives
inner_ptr   [T, F]
row_slot_ptr [T] int32            slot of each row, -1 where its line does not run
norms_ptr   [layers, 4, D] fp32   gains and biases: four bytes a value can be loaded ahead, two not
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.barrier import grid_barrier, grid_leave
from microturn.kernels.device.kv import kv_row
from microturn.kernels.device.numbers import gelu
from microturn.kernels.device.product import column_totals, group_sums, prefetch_share, product
from microturn.kernels.device.rows import line_of_row, running_slot
from microturn.kernels.device.turns import cos_sin

ALL = tl.constexpr(0)
INPUT = tl.constexpr(1)
QKV = tl.constexpr(2)
ATTEND = tl.constexpr(3)
OUT = tl.constexpr(4)
FF_IN = tl.constexpr(5)
FF_OUT = tl.constexpr(6)

UNSEEN = tl.constexpr(-1.0e30)
"""The maximum of a row that has seen no key yet."""


@triton.jit
def _address(table_ptr, layer, entry: tl.constexpr, like_ptr):
    """The pointer kept for a layer, of like_ptr's type, aligned to 16 bytes."""
    address = tl.load(table_ptr + layer * 14 + entry)
    return tl.multiple_of(address.to(like_ptr.dtype), 16)


@triton.jit
def _norm_product(
    w_rows, x_rows, norm_ptr, sums_ptr, t, t_in, T, eps,
    D: tl.constexpr, POW_GROUPS: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """[R, BLOCK_T] fp32: weights times the layer norm of the rows; norm_ptr gain, then bias."""
    GROUPS: tl.constexpr = D // 16
    mean = column_totals(sums_ptr, t, t_in, T, GROUPS, POW_GROUPS) / D
    square = column_totals(sums_ptr + GROUPS * T, t, t_in, T, GROUPS, POW_GROUPS) / D
    scale = tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((R, BLOCK_T), tl.float32)
    for start in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        at = start + k
        inside = at < D
        if D % BLOCK_K == 0:
            w = tl.load(w_rows[:, None] + at[None, :])
            x = tl.load(x_rows[None, :] + at[:, None], cache_modifier=".cg")
        else:
            w = tl.load(w_rows[:, None] + at[None, :], mask=inside[None, :], other=0.0)
            x = tl.load(
                x_rows[None, :] + at[:, None], mask=inside[:, None], other=0.0, cache_modifier=".cg"
            )
        gain = tl.load(norm_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
        bias = tl.load(norm_ptr + D + at, mask=inside, other=0.0, cache_modifier=".cg")
        normed = (x.to(tl.float32) - mean[None, :]) * scale[None, :]
        normed = normed * gain[:, None] + bias[:, None]
        acc = tl.dot(w, normed.to(w.dtype), acc, input_precision="ieee")
    return acc


@triton.jit(noinline=True)
def take_input(
    program, programs, input_ptr, stride_input, x_ptr, sums_ptr, row_slot_ptr, slots_ptr,
    offsets_ptr, exec_ptr, table_ptr, norms_ptr, layers, B, T, LINES: tl.constexpr,
    D: tl.constexpr, POW_D: tl.constexpr,
):  # fmt: skip
    """x = the input, zeros where a row's line does not run; and every layer's norms in fp32."""
    for entry in tl.range(program, 4 * layers, programs):
        c = tl.arange(0, POW_D)
        which = entry % 4
        place = entry // 4 * 14 + which % 2 + which // 2 * 5
        from_ptr = tl.multiple_of(tl.load(table_ptr + place).to(x_ptr.dtype), 16)
        norm = tl.load(from_ptr + c, mask=c < D, other=0.0).to(tl.float32)
        tl.store(norms_ptr + entry * D + c, norm, mask=c < D)
    for row in tl.range(program, T, programs):
        slot = running_slot(line_of_row(row, offsets_ptr, B, LINES), slots_ptr, exec_ptr, B)
        tl.store(row_slot_ptr + row, slot)
        c = tl.arange(0, POW_D)
        inside = c < D
        at = tl.cast(row, tl.int64)
        x = tl.load(input_ptr + at * stride_input + c, mask=inside & (slot >= 0), other=0.0)
        tl.store(x_ptr + at * D + c, x, mask=inside)
        wide = tl.reshape(x.to(tl.float32), (POW_D // 16, 16))
        g = tl.arange(0, POW_D // 16)
        tl.store(sums_ptr + g * T + row, tl.sum(wide, 1), mask=g < D // 16)
        tl.store(sums_ptr + (D // 16 + g) * T + row, tl.sum(wide * wide, 1), mask=g < D // 16)


@triton.jit(noinline=True)
def project_qkv(
    program, programs, w_ptr, norm_ptr, x_ptr, sums_ptr, row_slot_ptr, positions_ptr,
    turns_ptr, q_ptr, k_ptr, v_ptr, k_table_ptr, v_table_ptr, T, eps, k_capacity, k_pinned,
    v_capacity, v_pinned,
    D: tl.constexpr, HEAD_DIM: tl.constexpr, POW_GROUPS: tl.constexpr, K_PAGE: tl.constexpr,
    V_PAGE: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """q, k and v of the normed rows; q and k turned, k and v appended to the arenas."""
    tiles_n: tl.constexpr = (3 * D + R - 1) // R
    for item in tl.range(program, tiles_n * tl.cdiv(T, BLOCK_T), programs):
        first = item % tiles_n * R
        n = tl.minimum(first + tl.arange(0, R), 3 * D - 1)
        t = item // tiles_n * BLOCK_T + tl.arange(0, BLOCK_T)
        t_in, row = t < T, tl.minimum(t, T - 1)
        acc = _norm_product(
            w_ptr + n * D, x_ptr + row * D, norm_ptr, sums_ptr, t, t_in, T, eps, D,
            POW_GROUPS, R, BLOCK_T, BLOCK_K, STAGES,
        )  # fmt: skip
        pairs = tl.permute(tl.reshape(acc, (R // 2, 2, BLOCK_T)), (0, 2, 1))
        even, odd = tl.split(pairs)
        n = first + 2 * tl.arange(0, R // 2)
        part, inner = n // D, n % D
        position = tl.load(positions_ptr + row)
        turns = tl.load(turns_ptr + inner % HEAD_DIM // 2)
        turns = (
            tl.where((part < 2)[:, None], turns[:, None], 0.0) * position.to(tl.float64)[None, :]
        )
        cos, sin = cos_sin(turns)
        even, odd = even * cos - odd * sin, even * sin + odd * cos
        slot = tl.load(row_slot_ptr + row, cache_modifier=".cg")
        inside = t_in[None, :] & (n < 3 * D)[:, None]
        kept = inside & (slot >= 0)[None, :]
        q = q_ptr + row[None, :] * D + inner[:, None]
        dtype = q_ptr.dtype.element_ty
        mask = inside & (part == 0)[:, None]
        tl.store(q, even.to(dtype), mask=mask)
        tl.store(q + 1, odd.to(dtype), mask=mask)
        dtype = k_ptr.dtype.element_ty
        k_row = kv_row(slot, position, k_table_ptr, k_capacity, k_pinned, K_PAGE)
        v_row = kv_row(slot, position, v_table_ptr, v_capacity, v_pinned, V_PAGE)
        k = k_ptr + k_row[None, :] * D + inner[:, None]
        mask = kept & (part == 1)[:, None]
        tl.store(k, even.to(dtype), mask=mask)
        tl.store(k + 1, odd.to(dtype), mask=mask)
        v = v_ptr + v_row[None, :] * D + inner[:, None]
        mask = kept & (part == 2)[:, None]
        tl.store(v, even.to(dtype), mask=mask)
        tl.store(v + 1, odd.to(dtype), mask=mask)


@triton.jit(noinline=True)
def attend(
    program, programs, q_ptr, k_ptr, v_ptr, k_table_ptr, v_table_ptr, heard_ptr, slots_ptr,
    offsets_ptr, exec_ptr, positions_ptr, B, tiles, k_capacity, k_pinned, v_capacity, v_pinned,
    scale,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr,
    K_PAGE: tl.constexpr, V_PAGE: tl.constexpr, BLOCK_Q: tl.constexpr, LEAF: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Softmax attention of BLOCK_Q rows of a line and one head over their window.

    Leaves of LEAF keys stand at multiples of LEAF and are folded in order; one that a row does not
    see leaves its bits as they are. So they depend neither on the tile nor on the cut of a stream.
    """
    for item in tl.range(program, B * tiles * HEADS, programs):
        head = item % HEADS
        line = item // HEADS // tiles
        start = tl.load(offsets_ptr + line) + item // HEADS % tiles * BLOCK_Q
        count = tl.minimum(tl.load(offsets_ptr + line + 1) - start, BLOCK_Q)
        slot = running_slot(line, slots_ptr, exec_ptr, B)
        if (slot >= 0) & (count > 0):
            i = tl.arange(0, BLOCK_Q)
            d = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
            at = (start + tl.minimum(i, count - 1))[:, None] * D + d[None, :]
            q = tl.load(q_ptr + at, cache_modifier=".cg")
            first = tl.load(positions_ptr + start)
            here = first + i
            lowest = tl.maximum(first - WINDOW + 1, 0)
            highest = first + count - 1
            top = tl.full((BLOCK_Q,), UNSEEN, tl.float32)
            total = tl.zeros((BLOCK_Q,), tl.float32)
            acc = tl.zeros((BLOCK_Q, HEAD_DIM), tl.float32)
            for leaf in tl.range(
                (lowest // LEAF).to(tl.int32), (highest // LEAF + 1).to(tl.int32), num_stages=STAGES
            ):
                key = tl.cast(leaf, tl.int64) * LEAF + tl.arange(0, LEAF)
                there = (key >= lowest) & (key <= highest)
                k_row = kv_row(slot, key, k_table_ptr, k_capacity, k_pinned, K_PAGE)
                v_row = kv_row(slot, key, v_table_ptr, v_capacity, v_pinned, V_PAGE)
                k = tl.load(
                    k_ptr + k_row[:, None] * D + d[None, :],
                    mask=there[:, None], other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                v = tl.load(
                    v_ptr + v_row[:, None] * D + d[None, :],
                    mask=there[:, None], other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                scores = tl.dot(q, tl.trans(k).to(q.dtype), input_precision="ieee") * scale
                back = here[:, None] - key[None, :]
                seen = (back >= 0) & (back < WINDOW) & there[None, :]
                before = top
                top = tl.maximum(before, tl.max(tl.where(seen, scores, UNSEEN), 1))
                shares = tl.where(seen, tl.exp(scores - top[:, None]), 0.0)
                fade = tl.exp(before - top)
                total = total * fade + tl.sum(shares, 1)
                acc = acc * fade[:, None]
                acc = tl.dot(shares.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
            mixed = (acc / total[:, None]).to(heard_ptr.dtype.element_ty)
            tl.store(heard_ptr + at, mixed, mask=(i < count)[:, None])


@triton.jit(noinline=True)
def add_product(
    program, programs, w_ptr, from_ptr, scale_ptr, x_ptr, sums_ptr, row_slot_ptr, y_ptr, stride_y,
    last, T,
    D: tl.constexpr, K: tl.constexpr, R: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x += scale * (w @ from), and the sums that the next norm needs; the result too where last."""
    tiles_n: tl.constexpr = (D + R - 1) // R
    for item in tl.range(program, tiles_n * tl.cdiv(T, BLOCK_T), programs):
        first = item % tiles_n * R
        n = first + tl.arange(0, R)
        t = item // tiles_n * BLOCK_T + tl.arange(0, BLOCK_T)
        n_in, t_in = n < D, t < T
        row = tl.minimum(t, T - 1)
        w_rows = w_ptr + tl.minimum(n, D - 1) * K
        acc = product(w_rows, from_ptr + row * K, K, R, BLOCK_T, BLOCK_K, STAGES)
        scale = tl.load(scale_ptr + n, mask=n_in, other=0.0).to(tl.float32)
        at = row[None, :] * D + n[:, None]
        inside = n_in[:, None] & t_in[None, :]
        before = tl.load(x_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
        kept = (before.to(tl.float32) + scale[:, None] * acc).to(x_ptr.dtype.element_ty)
        if last:
            runs = tl.load(row_slot_ptr + row, cache_modifier=".cg") >= 0
            y = y_ptr + row.to(tl.int64)[None, :] * stride_y + n[:, None]
            result = tl.where(runs[None, :], kept.to(tl.float32), 0.0)
            tl.store(y, result.to(y_ptr.dtype.element_ty), mask=inside)
        else:
            wide = tl.where(inside, kept.to(tl.float32), 0.0)
            tl.store(x_ptr + at, kept, mask=inside)
            g = tl.arange(0, 16)
            sums = sums_ptr + (first // 16 + g)[:, None] * T + t[None, :]
            some = ((g < R // 16) & (first // 16 + g < D // 16))[:, None] & t_in[None, :]
            tl.store(sums, group_sums(wide, R), mask=some)
            tl.store(sums + D // 16 * T, group_sums(wide * wide, R), mask=some)


@triton.jit(noinline=True)
def feed_in(
    program, programs, w_ptr, norm_ptr, x_ptr, sums_ptr, inner_ptr, T, eps,
    D: tl.constexpr, F: tl.constexpr, POW_GROUPS: tl.constexpr, R: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """inner = gelu(w @ norm(x))."""
    tiles_n: tl.constexpr = (F + R - 1) // R
    for item in tl.range(program, tiles_n * tl.cdiv(T, BLOCK_T), programs):
        n = item % tiles_n * R + tl.arange(0, R)
        t = item // tiles_n * BLOCK_T + tl.arange(0, BLOCK_T)
        t_in, row = t < T, tl.minimum(t, T - 1)
        acc = _norm_product(
            w_ptr + tl.minimum(n, F - 1) * D, x_ptr + row * D, norm_ptr, sums_ptr, t,
            t_in, T, eps, D, POW_GROUPS, R, BLOCK_T, BLOCK_K, STAGES,
        )  # fmt: skip
        inner = inner_ptr + row[None, :] * F + n[:, None]
        mask = (n < F)[:, None] & t_in[None, :]
        tl.store(inner, gelu(acc).to(inner_ptr.dtype.element_ty), mask=mask)


@triton.jit
def codec_layers(
    table_ptr, input_ptr, y_ptr, slots_ptr, offsets_ptr, exec_ptr, positions_ptr, turns_ptr,
    k_like_ptr, page_like_ptr, x_ptr, sums_ptr, q_ptr, heard_ptr, inner_ptr, row_slot_ptr,
    norms_ptr, counter_ptr,
    B, T, tiles, stride_input, stride_y, eps, scale, k_capacity, k_pinned, v_capacity, v_pinned,
    layers, first_layer, last_layer,
    D: tl.constexpr, POW_D: tl.constexpr, POW_GROUPS: tl.constexpr, F: tl.constexpr,
    HEADS: tl.constexpr, WINDOW: tl.constexpr, K_PAGE: tl.constexpr, V_PAGE: tl.constexpr,
    LINES: tl.constexpr, LEAF: tl.constexpr, STAGE: tl.constexpr, PREFETCH: tl.constexpr,
    R: tl.constexpr, R_ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """ALL stages of all layers with a barrier between, or one STAGE of layers first_layer to
    last_layer - 1, which needs none.

    PREFETCH: ask for the weights of the stages ahead before working on this one's.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    HEAD_DIM: tl.constexpr = D // HEADS
    epoch = 0
    if STAGE == ALL or STAGE == INPUT:
        take_input(
            program, programs, input_ptr, stride_input, x_ptr, sums_ptr, row_slot_ptr, slots_ptr,
            offsets_ptr, exec_ptr, table_ptr, norms_ptr, layers, B, T, LINES, D, POW_D,
        )  # fmt: skip
    for layer in tl.range(first_layer, last_layer):
        in_proj_ptr = _address(table_ptr, layer, 2, x_ptr)
        out_proj_ptr = _address(table_ptr, layer, 3, x_ptr)
        ff_in_ptr = _address(table_ptr, layer, 7, x_ptr)
        ff_out_ptr = _address(table_ptr, layer, 8, x_ptr)
        k_ptr = _address(table_ptr, layer, 10, k_like_ptr)
        v_ptr = _address(table_ptr, layer, 11, k_like_ptr)
        k_table_ptr = _address(table_ptr, layer, 12, page_like_ptr)
        v_table_ptr = _address(table_ptr, layer, 13, page_like_ptr)
        if STAGE == ALL:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
        if STAGE == ALL or STAGE == QKV:
            if PREFETCH:
                prefetch_share(out_proj_ptr, D * D, program, programs, 128)
                prefetch_share(ff_in_ptr, F * D, program, programs, 128)
            project_qkv(
                program, programs, in_proj_ptr, norms_ptr + layer * 4 * D, x_ptr, sums_ptr,
                row_slot_ptr, positions_ptr, turns_ptr, q_ptr, k_ptr, v_ptr, k_table_ptr,
                v_table_ptr, T, eps, k_capacity, k_pinned, v_capacity, v_pinned, D, HEAD_DIM,
                POW_GROUPS, K_PAGE, V_PAGE, R, BLOCK_T, BLOCK_K, STAGES,
            )  # fmt: skip
        if STAGE == ALL:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
        if STAGE == ALL or STAGE == ATTEND:
            attend(
                program, programs, q_ptr, k_ptr, v_ptr, k_table_ptr, v_table_ptr, heard_ptr,
                slots_ptr, offsets_ptr, exec_ptr, positions_ptr, B, tiles, k_capacity, k_pinned,
                v_capacity, v_pinned, scale, D, HEADS, HEAD_DIM, WINDOW, K_PAGE, V_PAGE, 16, LEAF,
                2,
            )  # fmt: skip
        if STAGE == ALL:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
        if STAGE == ALL or STAGE == OUT:
            if PREFETCH:
                prefetch_share(ff_out_ptr, F * D, program, programs, 128)
            add_product(
                program, programs, out_proj_ptr, heard_ptr, _address(table_ptr, layer, 4, x_ptr),
                x_ptr, sums_ptr, row_slot_ptr, y_ptr, stride_y, False, T, D, D, R_ADD, BLOCK_T,
                BLOCK_K, STAGES,
            )  # fmt: skip
        if STAGE == ALL:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
        if STAGE == ALL or STAGE == FF_IN:
            if PREFETCH and layer + 1 < layers:
                ahead = _address(table_ptr, layer + 1, 2, x_ptr)
                prefetch_share(ahead, 3 * D * D, program, programs, 128)
            feed_in(
                program, programs, ff_in_ptr, norms_ptr + (layer * 4 + 2) * D, x_ptr, sums_ptr,
                inner_ptr, T, eps, D, F, POW_GROUPS, R, BLOCK_T, BLOCK_K, STAGES,
            )  # fmt: skip
        if STAGE == ALL:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
        if STAGE == ALL or STAGE == FF_OUT:
            add_product(
                program, programs, ff_out_ptr, inner_ptr, _address(table_ptr, layer, 9, x_ptr),
                x_ptr, sums_ptr, row_slot_ptr, y_ptr, stride_y, layer + 1 == layers, T, D, F,
                R_ADD, BLOCK_T, BLOCK_K, STAGES,
            )  # fmt: skip
    if STAGE == ALL:
        grid_leave(counter_ptr, programs, epoch)
