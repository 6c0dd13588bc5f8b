"""open_lines on the host, in numpy, whose small calls cost a tenth of torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microturn.kernels.arena import Twice


@dataclass(frozen=True)
class LineState:
    """What a tick moves on: rows, frames [S] int64, positions committed on the two cursors;
    feedback, a Twice of [1 + Q] int64 a slot, text id and codes of the last output position. Its
    parity is that of every Twice arena.
    """

    rows: Tensor
    frames: Tensor
    feedback: Twice


@dataclass(frozen=True)
class Opening:
    """B lines, of which the first E may speak.

    slot_ids    [B] int32, -1 pads
    row_offsets [B + 1] int32 of the append pass
    emits       [B] bool: hears and speaks; false from line E on
    reset       [B] bool: a new tenant, whose slot starts at position 0
    num_rows    T of the append pass, rows that no line owns included
    speaking    E
    frames      F, output positions of a tick
    """

    slot_ids: Tensor
    row_offsets: Tensor
    emits: Tensor
    reset: Tensor
    num_rows: int
    speaking: int
    frames: int


@dataclass(frozen=True)
class OpenedLines:
    """Of int64; lines and rows of nobody get zeros.

    positions [T]      of the append pass
    heard     [E * F]  positions of the output slots; steps [F, E] the same, a slot of all lines
                       after the other
    said      [F - 1, E]  positions of the rows that feed outputs back within the tick
    ends      [E]      last row of each line
    feedback  [B, 1 + Q]  what a line reads back first
    after     [2, B]   both cursors once this tick is committed
    """

    positions: Tensor
    heard: Tensor
    steps: Tensor
    said: Tensor
    ends: Tensor
    feedback: Tensor
    after: Tensor

    @classmethod
    def allocate(cls, x: Opening, width: int, new: Callable[..., Tensor]) -> OpenedLines:
        """For feedback of `width` ids; new: torch.zeros, or torch.empty to write it all."""
        lines, device = x.slot_ids.shape[0], x.slot_ids.device

        def made(*shape: int) -> Tensor:
            return new(shape, dtype=torch.int64, device=device)

        return cls(
            made(x.num_rows),
            made(x.speaking * x.frames),
            made(x.frames, x.speaking),
            made(x.frames - 1, x.speaking),
            made(x.speaking),
            made(lines, width),
            made(2, lines),
        )


def core(x: Opening, start: Tensor, state: LineState) -> OpenedLines:
    """start [1 + Q] int64: what a session reads back first."""
    lines, speaking, count = x.slot_ids.shape[0], x.speaking, x.frames
    rows, frames, parity = state.rows.numpy(), state.frames.numpy(), state.feedback.parity.numpy()
    positions = np.zeros(x.num_rows, np.int64)
    steps = np.zeros((count, speaking), np.int64)
    said = np.zeros((count - 1, speaking), np.int64)
    ends = np.zeros(speaking, np.int64)
    feedback = np.zeros((lines, start.shape[0]), np.int64)
    after = np.zeros((2, lines), np.int64)
    offsets = x.row_offsets.tolist()
    each = zip(x.slot_ids.tolist(), x.emits.tolist(), x.reset.tolist(), strict=True)
    for b, (slot, emits, reset) in enumerate(each):
        if slot < 0:
            continue
        if reset:
            rows[slot] = frames[slot] = parity[slot] = 0
        first, last = offsets[b], offsets[b + 1]
        row, frame = int(rows[slot]), int(frames[slot])
        end = row + last - first
        positions[first:last] = range(row, end)
        kept = start if frame == 0 else state.feedback.data[int(parity[slot]), slot]
        feedback[b] = kept.numpy()
        after[:, b] = end + (count - 1) * emits, frame + count * emits
        if emits:
            steps[:, b] = range(frame, frame + count)
            said[:, b] = range(end, end + count - 1)
        if b < speaking:
            ends[b] = max(last - 1, 0)
    heard = steps.T.flatten()
    made = (positions, heard, steps, said, ends, feedback, after)
    return OpenedLines(*map(torch.from_numpy, made))


def open_lines_reference(
    x: Opening,
    weights: Tensor,
    state: LineState,
    rows: None = None,
    *,
    out: OpenedLines | None = None,
) -> OpenedLines:
    """See `open_lines`."""
    made = core(x, weights, state)
    if out is None:
        return made
    for name, value in vars(made).items():
        getattr(out, name).copy_(value)
    return out
