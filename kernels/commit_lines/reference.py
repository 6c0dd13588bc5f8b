"""commit_lines on the host, in numpy, whose small calls cost a tenth of torch's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    emits, slots, said = x.emits.numpy()[:speaking], x.slot_ids.numpy()[:speaking], x.audio.numpy()
    sound = np.isfinite(said)
    finite = np.isfinite(x.peaks.numpy()).all(0) & x.finite.numpy().all(0) & sound.all(-1)
    ok = np.ones(lines, np.bool_)
    ok[:speaking] = finite | ~emits
    audio = np.zeros((lines, said.shape[1]), np.float32)
    heard = (emits & (slots >= 0))[:, None] & sound
    np.clip(said, -1, 1, out=audio[:speaking], where=heard)
    return Committed(torch.from_numpy(ok), torch.from_numpy(audio))


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
    of_rows, of_frames = state.rows.numpy(), state.frames.numpy()
    parity, feedback = state.feedback.parity.numpy(), state.feedback.data.numpy()
    after = x.after.numpy()
    for b, (slot, emits, ok) in enumerate(lines):
        if slot < 0 or not ok:
            continue
        of_rows[slot], of_frames[slot] = after[:, b]
        if emits:
            parity[slot] = 1 - parity[slot]
            feedback[parity[slot], slot, 0] = x.text_ids.numpy()[-1, b]
            feedback[parity[slot], slot, 1:] = x.codes.numpy()[-1, b]
    if out is None:
        return made
    return Committed(out.ok.copy_(made.ok), out.audio.copy_(made.audio))
