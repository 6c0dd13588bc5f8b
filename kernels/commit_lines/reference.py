"""commit_lines in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microturn.kernels.open_lines.reference import LineState


@dataclass(frozen=True)
class Said:
    """What a tick made for B lines, of which the first E may speak.

    slot_ids [B] int32, emits [B] bool: as in Opening
    after    [2, B] int64: rows and frames of a line that is committed
    peaks    [F, E] fp32: the largest magnitude among a position's text logits
    finite   [F, E] bool: whether every logit of a position's codes was
    text_ids [F, E] int64, codes [F, E, Q] int64
    audio    [E, N] fp32
    """

    slot_ids: Tensor
    emits: Tensor
    after: Tensor
    peaks: Tensor
    finite: Tensor
    text_ids: Tensor
    codes: Tensor
    audio: Tensor


@dataclass(frozen=True)
class Committed:
    """ok [B] bool; audio [B, N] fp32 in [-1, 1]."""

    ok: Tensor
    audio: Tensor


def core(x: Said) -> Committed:
    """What is ok, and the audio as it is heard; nothing is committed."""
    lines, speaking = x.slot_ids.shape[0], x.audio.shape[0]
    finite = x.peaks.isfinite().all(0) & x.finite.all(0) & x.audio.isfinite().all(-1)
    ok = torch.ones(lines, dtype=torch.bool, device=x.audio.device)
    ok[:speaking] = finite | ~x.emits[:speaking]
    audio = x.audio.new_zeros(lines, x.audio.shape[1])
    heard = (x.emits[:speaking] & (x.slot_ids[:speaking] >= 0))[:, None]
    audio[:speaking] = torch.where(heard & x.audio.isfinite(), x.audio.clamp(-1, 1), 0.0)
    return Committed(ok, audio)


def commit_lines_reference(
    x: Said,
    weights: None,
    state: LineState,
    rows: None = None,
    *,
    out: Committed | None = None,
) -> Committed:
    """See `commit_lines`."""
    made = core(x)
    lines = zip(x.slot_ids.tolist(), x.emits.tolist(), made.ok.tolist(), strict=True)
    parity = state.feedback.parity
    for b, (slot, emits, ok) in enumerate(lines):
        if slot < 0 or not ok:
            continue
        state.rows[slot], state.frames[slot] = x.after[0, b], x.after[1, b]
        if emits:
            last = torch.cat((x.text_ids[-1:, b], x.codes[-1, b]))
            parity[slot] = 1 - parity[slot]
            state.feedback.data[parity[slot], slot] = last
    if out is None:
        return made
    return Committed(out.ok.copy_(made.ok), out.audio.copy_(made.audio))
