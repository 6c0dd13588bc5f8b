"""The Triton kernel of sampling.

logits_ptr      [B, V] fp32, stride_row between rows
temperature_ptr [B] fp32; top_k_ptr, seed_ptr, step_ptr [B] int64
slots_ptr       [B] int32, exec_ptr [B] uint8: rows that run (HAS_ROWS)
ids_ptr         [B] int64, stride_out between rows: the result
keys_ptr, names_ptr [B, V] int32: keys and ids of the candidates of a row, in any order (SPLIT > 1)
counts_ptr      [B, 2] int32, zero before and after: candidates, and programs done (SPLIT > 1)
"""

from __future__ import annotations

import triton
import triton.language as tl

from microturn.kernels.device.rows import running_slot
from microturn.kernels.device.select import draw, kth_key, ordered_keys


@triton.jit
def sampling_rows(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    seed_ptr,
    step_ptr,
    slots_ptr,
    exec_ptr,
    ids_ptr,
    keys_ptr,
    names_ptr,
    counts_ptr,
    B,
    stride_row,
    stride_out,
    V: tl.constexpr,
    STREAM: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    FINAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """One id of a row. With SPLIT > 1 a program finds the candidates of BLOCK ids; the last to be
    done with a row draws from all of them.

    What a part of a row may hold of its k largest is its own k largest. They are found by the upper
    16 bits of the key, so a few more may be handed on; where the last program reads them does not
    matter to what it draws.
    """
    row = tl.program_id(0) // SPLIT
    part = tl.program_id(0) % SPLIT
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    runs = 0
    if HAS_ROWS:
        runs = running_slot(row, slots_ptr, exec_ptr, B)
    lane = part * BLOCK + tl.arange(0, BLOCK)
    there = (lane < V) & (runs >= 0)
    at = tl.cast(row, tl.int64)
    logits = tl.load(logits_ptr + at * stride_row + lane, mask=there, other=0.0)
    keys = ordered_keys(logits)
    temperature = tl.load(temperature_ptr + row)
    k = tl.minimum(tl.load(top_k_ptr + row), V).to(tl.int32)
    seed, step = tl.load(seed_ptr + row), tl.load(step_ptr + row)
    stream = tl.cast(STREAM, tl.int32)
    out = ids_ptr + at * stride_out
    if SPLIT == 1:
        best, _ = draw(
            keys, lane, there, k, temperature, stream, seed, step, keys_ptr, names_ptr, V, False,
            BLOCK,
        )  # fmt: skip
        tl.store(out, tl.where(runs >= 0, best, 0).to(tl.int64))
    else:
        wanted = tl.where(temperature > 0.0, tl.maximum(k, 1), 1)
        kth = kth_key(keys, there, wanted, 16)
        kept = there & (keys >= kth)
        rank = tl.cumsum(kept.to(tl.int32), 0)
        first = tl.atomic_add(counts_ptr + 2 * row, tl.sum(kept.to(tl.int32)), sem="relaxed")
        place = at * V + first + rank - 1
        tl.store(keys_ptr + place, keys.to(tl.int32, bitcast=True), mask=kept)
        tl.store(names_ptr + place, lane, mask=kept)
        tl.debug_barrier()
        done = tl.atomic_add(counts_ptr + 2 * row + 1, 1, sem="acq_rel", scope="gpu")
        if done == SPLIT - 1:
            tl.debug_barrier()
            size = tl.atomic_add(counts_ptr + 2 * row, 0, sem="relaxed")
            some = tl.arange(0, FINAL)
            inside = some < size
            base_keys, base_names = keys_ptr + at * V, names_ptr + at * V
            found = tl.load(base_keys + some, mask=inside, other=0, cache_modifier=".cg")
            names = tl.load(base_names + some, mask=inside, other=0, cache_modifier=".cg")
            drawn, _ = draw(
                found.to(tl.uint32, bitcast=True), names, inside, k, temperature, stream, seed,
                step, base_keys, base_names, size, True, FINAL,
            )  # fmt: skip
            tl.store(out, tl.where(runs >= 0, drawn, 0).to(tl.int64))
            tl.store(counts_ptr + 2 * row, 0)
            tl.store(counts_ptr + 2 * row + 1, 0)
