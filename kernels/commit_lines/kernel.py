"""The Triton kernel of commit_lines.

slots_ptr     [B] int32, emits_ptr [B] uint8, after_ptr [2, B] int64
peaks_ptr     [F, E] fp32, finite_ptr [F, E] uint8
text_ptr      [F, E] int64, codes_ptr [F, E, Q] int64, audio_ptr [E, N] fp32
rows_ptr, frames_ptr, parity_ptr [S] int64; kept_ptr [2, S, 1 + Q] int64
ok_ptr        [B] uint8, out_ptr [B, N] fp32: the results
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def commit_lines_one(
    slots_ptr,
    emits_ptr,
    after_ptr,
    peaks_ptr,
    finite_ptr,
    text_ptr,
    codes_ptr,
    audio_ptr,
    rows_ptr,
    frames_ptr,
    parity_ptr,
    kept_ptr,
    ok_ptr,
    out_ptr,
    B,
    E,
    S,
    N,
    F: tl.constexpr,
    Q: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PDL: tl.constexpr,
):
    """A line a program: it looks at all of the line's numbers, then moves the line on."""
    b = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    slot = tl.load(slots_ptr + b)
    speaks = (slot >= 0) & (b < E) & (tl.load(emits_ptr + b) != 0)
    lane = tl.arange(0, BLOCK)
    bad = tl.zeros([BLOCK], tl.int32)
    step = 0
    at = tl.cast(b, tl.int64) * N
    while step < N:
        n = step + lane
        heard = tl.load(audio_ptr + at + n, mask=(n < N) & speaks, other=0.0)
        finite = tl.abs(heard) < float("inf")
        bad = bad | finite.to(tl.int32) ^ 1
        clamped = tl.where(finite, tl.minimum(tl.maximum(heard, -1.0), 1.0), 0.0)
        tl.store(out_ptr + at + n, clamped, mask=n < N)
        step += BLOCK
    f = tl.arange(0, BLOCK_F)
    mine = (f < F) & speaks
    peak = tl.load(peaks_ptr + f * E + b, mask=mine, other=0.0)
    whole = tl.load(finite_ptr + f * E + b, mask=mine, other=1)
    wrong = (tl.abs(peak) < float("inf")).to(tl.int32) ^ 1 | (whole == 0).to(tl.int32)
    ok = (tl.max(bad, 0) == 0) & (tl.max(wrong, 0) == 0)
    tl.store(ok_ptr + b, ok.to(tl.uint8))
    moves = ok & (slot >= 0)
    slot = tl.maximum(slot, 0).to(tl.int64)
    tl.store(rows_ptr + slot, tl.load(after_ptr + b), mask=moves)
    tl.store(frames_ptr + slot, tl.load(after_ptr + B + b), mask=moves)
    turns = moves & speaks
    other = 1 - tl.load(parity_ptr + slot, mask=turns, other=0)
    tl.store(parity_ptr + slot, other, mask=turns)
    base = kept_ptr + (other * S + slot) * (1 + Q)
    text = tl.load(text_ptr + (F - 1) * E + b, mask=turns, other=0)
    tl.store(base, text, mask=turns)
    q = tl.arange(0, BLOCK_Q)
    codes = tl.load(codes_ptr + ((F - 1) * E + b) * Q + q, mask=(q < Q) & turns, other=0)
    tl.store(base + 1 + q, codes, mask=(q < Q) & turns)
