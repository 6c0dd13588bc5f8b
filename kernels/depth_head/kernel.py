"""The Triton kernel of depth_head: every codebook step of a frame in one cooperative launch.

B rows, Q codebooks of V codes, L layers of width D and gate G, trunk width H; weights as in
`DepthWeights`, contiguous.

hidden_ptr [B, H], stride_hidden between rows; text_ids_ptr [B] int64
temperature_ptr [B] fp32; top_k_ptr, seed_ptr, draw_ptr [B] int64: see `SamplingParams`
slots_ptr  [B] int32, exec_ptr [B] uint8: rows that run (HAS_ROWS)
codes_ptr  [B, Q] int64, finite_ptr [B] uint8: the results
counter_ptr one int32 of the grid barrier, zero before and after

Between stages, in the dtype of the weights unless said otherwise:
base_ptr   [B, Q, D]        the hidden state projected for each step
x_ptr      [B, D]           the residual stream
scaled_ptr [B, D]           x times the gain of the norm that reads it next
sums_ptr   [D / 16, B] fp32 sums of the squares of 16 values of x each
qkv_ptr    [L, Q, B, 3 D]   of all steps so far
attended_ptr [B, D]; FUSED: [programs, B, D], each program's own
act_ptr    [B, G]           silu(gate) * up
logits_ptr [B, Q, V] fp32

A norm divides a whole row by one number, so the product over `scaled` is divided instead, after it.
"""

# ruff: noqa: SIM109  (Triton knows no `in`)
from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.barrier import grid_barrier, grid_leave
from microturn.kernels.device.numbers import silu
from microturn.kernels.device.product import column_totals, group_sums, prefetch_share, product
from microturn.kernels.device.rows import running_slot
from microturn.kernels.device.select import draw, ordered_keys

ALL = tl.constexpr(0)
HIDDEN = tl.constexpr(1)
EMBED = tl.constexpr(2)
QKV = tl.constexpr(3)
ATTEND = tl.constexpr(4)
OUT = tl.constexpr(5)
GATE = tl.constexpr(6)
DOWN = tl.constexpr(7)
HEAD = tl.constexpr(8)
DRAW = tl.constexpr(9)


@triton.jit(noinline=True)
def project(
    program, programs, w_ptr, x_ptr, stride_x, y_ptr, stride_y, sums_ptr, eps, B,
    N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, GROUPS: tl.constexpr,
    POW_GROUPS: tl.constexpr, R: tl.constexpr, T: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y[b, n] = w[n] . x[b], divided by the root mean square of the row that x scales (NORM)."""
    tiles_n: tl.constexpr = (N + R - 1) // R
    for item in tl.range(program, tiles_n * tl.cdiv(B, T), programs):
        n = item % tiles_n * R + tl.arange(0, R)
        t = item // tiles_n * T + tl.arange(0, T)
        t_in, row = t < B, tl.minimum(t, B - 1)
        w_rows = w_ptr + tl.minimum(n, N - 1).to(tl.int64) * K
        acc = product(w_rows, x_ptr + row * stride_x, K, R, T, BLOCK_K, STAGES)
        if NORM:
            total = column_totals(sums_ptr, t, t_in, B, GROUPS, POW_GROUPS)
            acc = acc * tl.rsqrt(total / K + eps)[None, :]
        y = y_ptr + row.to(tl.int64)[None, :] * stride_y + n[:, None]
        tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=(n < N)[:, None] & t_in[None, :])


@triton.jit(noinline=True)
def gate_up(
    program, programs, w_ptr, x_ptr, act_ptr, sums_ptr, eps, B,
    G: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr, POW_GROUPS: tl.constexpr,
    R: tl.constexpr, T: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """act[b, g] = silu(gate) * up, both of the normed row: a tile is R / 2 rows of each."""
    HALF: tl.constexpr = R // 2
    tiles_g: tl.constexpr = (G + HALF - 1) // HALF
    for item in tl.range(program, tiles_g * tl.cdiv(B, T), programs):
        r = tl.arange(0, R)
        first = item % tiles_g * HALF
        t = item // tiles_g * T + tl.arange(0, T)
        t_in, row = t < B, tl.minimum(t, B - 1)
        w_row = r // HALF * G + tl.minimum(first + r % HALF, G - 1)
        acc = product(w_ptr + w_row.to(tl.int64) * D, x_ptr + row * D, D, R, T, BLOCK_K, STAGES)
        total = column_totals(sums_ptr, t, t_in, B, GROUPS, POW_GROUPS)
        acc = acc * tl.rsqrt(total / D + eps)[None, :]
        gate, up = tl.split(tl.permute(tl.reshape(acc, (2, HALF, T)), (1, 2, 0)))
        g = first + tl.arange(0, HALF)
        act = act_ptr + row[None, :] * G + g[:, None]
        value = (silu(gate) * up).to(act_ptr.dtype.element_ty)
        tl.store(act, value, mask=(g < G)[:, None] & t_in[None, :])


@triton.jit(noinline=True)
def add_product(
    program, programs, w_ptr, y_ptr, gain_ptr, x_ptr, scaled_ptr, sums_ptr, B,
    D: tl.constexpr, K: tl.constexpr, R: tl.constexpr, T: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x[b] += w @ y[b], and what the next norm needs of it."""
    tiles_n: tl.constexpr = (D + R - 1) // R
    dtype = x_ptr.dtype.element_ty
    for item in tl.range(program, tiles_n * tl.cdiv(B, T), programs):
        first = item % tiles_n * R
        n = first + tl.arange(0, R)
        t = item // tiles_n * T + tl.arange(0, T)
        n_in, t_in = n < D, t < B
        row = tl.minimum(t, B - 1)
        w_rows = w_ptr + tl.minimum(n, D - 1).to(tl.int64) * K
        acc = product(w_rows, y_ptr + row * K, K, R, T, BLOCK_K, STAGES)
        at = row[None, :] * D + n[:, None]
        inside = n_in[:, None] & t_in[None, :]
        before = tl.load(x_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
        kept = (before.to(tl.float32) + acc).to(dtype)
        wide = tl.where(inside, kept.to(tl.float32), 0.0)
        gain = tl.load(gain_ptr + n, mask=n_in, other=0.0).to(tl.float32)
        tl.store(x_ptr + at, kept, mask=inside)
        tl.store(scaled_ptr + at, (wide * gain[:, None]).to(dtype), mask=inside)
        g = tl.arange(0, 16)
        sums = sums_ptr + (first // 16 + g)[:, None] * B + t[None, :]
        some = (g < R // 16) & (first // 16 + g < D // 16)
        tl.store(sums, group_sums(wide * wide, R), mask=some[:, None] & t_in[None, :])


@triton.jit(noinline=True)
def attend(
    b, qkv_ptr, y_ptr, step, B, scale,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD_GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """y = the row's attention over its steps so far, HEAD_GROUP heads at a time; qkv_ptr is one
    layer's, y_ptr the row's.
    """
    j = tl.arange(0, STEPS)
    seen = j <= step
    for group in tl.static_range(0, HEADS, HEAD_GROUP):
        h = group + tl.arange(0, HEAD_GROUP)
        at = h[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        real = (h < HEADS)[:, None]
        here = qkv_ptr + (step * B + b) * 3 * D
        q = tl.load(here + at, mask=real, other=0.0, cache_modifier=".cg").to(tl.float32)
        past = (qkv_ptr + (j * B + b) * 3 * D)[:, None, None] + at[None, :, :]
        mask = seen[:, None, None] & real[None, :, :]
        k = tl.load(past + D, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        v = tl.load(past + 2 * D, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
        scores = tl.sum(q[None, :, :] * k, 2) * scale
        scores = tl.where(seen[:, None], scores, float("-inf"))
        shares = tl.exp(scores - tl.max(scores, 0)[None, :])
        mixed = tl.sum(shares[:, :, None] * v, 0) / tl.sum(shares, 0)[:, None]
        tl.store(y_ptr + at, mixed.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit(noinline=True)
def embed(
    b, base_ptr, table_ptr, gain_ptr, x_ptr, scaled_ptr, sums_ptr, B,
    D: tl.constexpr, POW_D: tl.constexpr,
):  # fmt: skip
    """x[b] = base + the table's row (both pointers at this row's), and what the next norm needs."""
    c = tl.arange(0, POW_D)
    inside = c < D
    base = tl.load(base_ptr + c, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
    kept = base + tl.load(table_ptr + c, mask=inside, other=0.0).to(tl.float32)
    kept = kept.to(x_ptr.dtype.element_ty)
    wide = kept.to(tl.float32)
    gain = tl.load(gain_ptr + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(x_ptr + b * D + c, kept, mask=inside)
    tl.store(scaled_ptr + b * D + c, (wide * gain).to(x_ptr.dtype.element_ty), mask=inside)
    sums = tl.sum(tl.reshape(wide * wide, (POW_D // 16, 16)), 1)
    g = tl.arange(0, POW_D // 16)
    tl.store(sums_ptr + g * B + b, sums, mask=g < D // 16)


@triton.jit
def depth_head_frame(
    hidden_ptr, text_ids_ptr, temperature_ptr, top_k_ptr, seed_ptr, draw_ptr, slots_ptr, exec_ptr,
    hidden_in_ptr, text_table_ptr, code_tables_ptr, attention_gain_ptr, qkv_weights_ptr, out_ptr,
    mlp_gain_ptr, gate_up_ptr, down_ptr, heads_ptr,
    base_ptr, x_ptr, scaled_ptr, sums_ptr, qkv_ptr, attended_ptr, act_ptr, logits_ptr,
    codes_ptr, finite_ptr, counter_ptr,
    B, text_ids, stride_hidden, eps, scale, first_step, last_step, first_layer, last_layer,
    H: tl.constexpr, D: tl.constexpr, L: tl.constexpr, Q: tl.constexpr, G: tl.constexpr,
    V: tl.constexpr, HEADS: tl.constexpr, HEAD_GROUP: tl.constexpr, STEPS: tl.constexpr,
    POW_D: tl.constexpr, POW_V: tl.constexpr, POW_GROUPS: tl.constexpr, HAS_ROWS: tl.constexpr,
    FUSED: tl.constexpr, STAGE: tl.constexpr, PREFETCH: tl.constexpr, R: tl.constexpr,
    T: tl.constexpr, R_ADD: tl.constexpr, T_ADD: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """A frame: the stages of steps first_step to last_step - 1 and layers first_layer to
    last_layer - 1, ALL of them with a barrier between, or one STAGE alone, which needs none.

    FUSED: no stage for attention; every program of the next one attends for itself.
    PREFETCH: ask for the weights of the stages ahead before working on this one's.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    GROUPS: tl.constexpr = D // 16
    QKV_SIZE: tl.constexpr = 3 * D * D
    OUT_SIZE: tl.constexpr = D * D
    GATE_SIZE: tl.constexpr = 2 * G * D
    DOWN_SIZE: tl.constexpr = D * G
    HEAD_SIZE: tl.constexpr = V * D
    epoch = 0

    if STAGE == ALL or STAGE == HIDDEN:
        project(
            program, programs, hidden_in_ptr, hidden_ptr, stride_hidden, base_ptr, Q * D, sums_ptr,
            eps, B, Q * D, H, False, GROUPS, POW_GROUPS, R, T, BLOCK_K, STAGES,
        )  # fmt: skip
    if STAGE == ALL:
        epoch += 1
        grid_barrier(counter_ptr, programs, epoch)
    if STAGE == ALL or STAGE == EMBED:
        for b in tl.range(program, B, programs):
            runs = 0
            if HAS_ROWS:
                runs = running_slot(b, slots_ptr, exec_ptr, B)
            text = tl.load(text_ids_ptr + b)
            text = tl.where(runs >= 0, tl.minimum(tl.maximum(text, 0), text_ids - 1), 0)
            base = base_ptr + tl.cast(b, tl.int64) * Q * D
            embed(
                b, base, text_table_ptr + text * D, attention_gain_ptr, x_ptr, scaled_ptr,
                sums_ptr, B, D, POW_D,
            )  # fmt: skip
    if STAGE == ALL:
        epoch += 1
        grid_barrier(counter_ptr, programs, epoch)

    for step in tl.range(first_step, last_step):
        for layer in tl.range(first_layer, last_layer):
            matrix = tl.cast(layer * Q + step, tl.int64)
            layer_qkv = qkv_ptr + tl.cast(layer, tl.int64) * Q * B * 3 * D
            if STAGE == ALL or STAGE == QKV:
                if PREFETCH:
                    prefetch_share(out_ptr + matrix * OUT_SIZE, OUT_SIZE, program, programs, 128)
                    prefetch_share(
                        gate_up_ptr + matrix * GATE_SIZE, GATE_SIZE, program, programs, 128
                    )
                project(
                    program, programs, qkv_weights_ptr + matrix * QKV_SIZE, scaled_ptr, D,
                    layer_qkv + step * B * 3 * D, 3 * D, sums_ptr, eps, B, 3 * D, D, True, GROUPS,
                    POW_GROUPS, R, T, BLOCK_K, STAGES,
                )  # fmt: skip
            if STAGE == ALL:
                epoch += 1
                grid_barrier(counter_ptr, programs, epoch)
            if not FUSED:
                if STAGE == ALL or STAGE == ATTEND:
                    for b in tl.range(program, B, programs):
                        attend(
                            b, layer_qkv, attended_ptr + b * D, step, B, scale, D, HEADS,
                            HEAD_GROUP, D // HEADS, STEPS,
                        )  # fmt: skip
                if STAGE == ALL:
                    epoch += 1
                    grid_barrier(counter_ptr, programs, epoch)
            if STAGE == ALL or STAGE == OUT:
                attended = attended_ptr
                if FUSED:
                    attended += tl.cast(program, tl.int64) * B * D
                    for b in tl.range(0, B):
                        attend(
                            b, layer_qkv, attended + b * D, step, B, scale, D, HEADS, HEAD_GROUP,
                            D // HEADS, STEPS,
                        )  # fmt: skip
                    tl.debug_barrier()
                add_product(
                    program, programs, out_ptr + matrix * OUT_SIZE, attended,
                    mlp_gain_ptr + layer * D, x_ptr, scaled_ptr, sums_ptr, B, D, D, R_ADD, T_ADD,
                    BLOCK_K, STAGES,
                )  # fmt: skip
            if STAGE == ALL:
                epoch += 1
                grid_barrier(counter_ptr, programs, epoch)
            if STAGE == ALL or STAGE == GATE:
                if PREFETCH:
                    prefetch_share(down_ptr + matrix * DOWN_SIZE, DOWN_SIZE, program, programs, 128)
                    if layer + 1 < L:
                        ahead = qkv_weights_ptr + (matrix + Q) * QKV_SIZE
                        prefetch_share(ahead, QKV_SIZE, program, programs, 128)
                    else:
                        ahead = heads_ptr + tl.cast(step, tl.int64) * HEAD_SIZE
                        prefetch_share(ahead, HEAD_SIZE, program, programs, 128)
                gate_up(
                    program, programs, gate_up_ptr + matrix * GATE_SIZE, scaled_ptr, act_ptr,
                    sums_ptr, eps, B, G, D, GROUPS, POW_GROUPS, R, T, BLOCK_K, STAGES,
                )  # fmt: skip
            if STAGE == ALL:
                epoch += 1
                grid_barrier(counter_ptr, programs, epoch)
            if STAGE == ALL or STAGE == DOWN:
                add_product(
                    program, programs, down_ptr + matrix * DOWN_SIZE, act_ptr,
                    attention_gain_ptr + tl.minimum(layer + 1, L - 1) * D, x_ptr, scaled_ptr,
                    sums_ptr, B, D, G, R_ADD, T_ADD, BLOCK_K, STAGES,
                )  # fmt: skip
            if STAGE == ALL:
                epoch += 1
                grid_barrier(counter_ptr, programs, epoch)

        if STAGE == ALL or STAGE == HEAD:
            if PREFETCH and step + 1 < Q:
                ahead = qkv_weights_ptr + tl.cast(step + 1, tl.int64) * QKV_SIZE
                prefetch_share(ahead, QKV_SIZE, program, programs, 128)
            project(
                program, programs, heads_ptr + tl.cast(step, tl.int64) * HEAD_SIZE, x_ptr, D,
                logits_ptr + step * V, Q * V, sums_ptr, eps, B, V, D, False, GROUPS, POW_GROUPS, R,
                T, BLOCK_K, STAGES,
            )  # fmt: skip
        if STAGE == ALL:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
        if STAGE == ALL or STAGE == DRAW:
            for b in tl.range(program, B, programs):
                runs = 0
                if HAS_ROWS:
                    runs = running_slot(b, slots_ptr, exec_ptr, B)
                code = tl.arange(0, POW_V)
                there = code < V
                row = logits_ptr + (tl.cast(b, tl.int64) * Q + step) * V
                logits = tl.load(row + code, mask=there, other=0.0, cache_modifier=".cg")
                wrong = tl.sum(((logits - logits) != 0.0).to(tl.int32))
                k = tl.minimum(tl.load(top_k_ptr + b), V).to(tl.int32)
                drawn, _ = draw(
                    ordered_keys(logits), code, there, k, tl.load(temperature_ptr + b),
                    tl.cast(1 + step, tl.int32), tl.load(seed_ptr + b), tl.load(draw_ptr + b),
                    row, row, V, False, POW_V,
                )  # fmt: skip
                drawn = tl.where(runs >= 0, drawn, 0)
                tl.store(codes_ptr + b * Q + step, drawn.to(tl.int64))
                good = tl.where((runs < 0) | (wrong == 0), 1, 0)
                if step > 0:
                    good = good & tl.load(finite_ptr + b, cache_modifier=".cg").to(tl.int32)
                tl.debug_barrier()
                tl.store(finite_ptr + b, good.to(tl.uint8))
                if step + 1 < Q:
                    table = tl.cast(step, tl.int64) * V + drawn
                    base = base_ptr + (tl.cast(b, tl.int64) * Q + step + 1) * D
                    embed(
                        b, base, code_tables_ptr + table * D, attention_gain_ptr, x_ptr,
                        scaled_ptr, sums_ptr, B, D, POW_D,
                    )  # fmt: skip
        if STAGE == ALL and step + 1 < Q:
            epoch += 1
            grid_barrier(counter_ptr, programs, epoch)
    if STAGE == ALL:
        grid_leave(counter_ptr, programs, epoch)
