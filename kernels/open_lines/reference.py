"""open_lines in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    made = OpenedLines.allocate(x, start.shape[0], torch.zeros)
    offsets = x.row_offsets.tolist()
    lines = zip(x.slot_ids.tolist(), x.emits.tolist(), x.reset.tolist(), strict=True)
    for b, (slot, emits, reset) in enumerate(lines):
        if slot < 0:
            continue
        if reset:
            state.rows[slot] = state.frames[slot] = state.feedback.parity[slot] = 0
        first, last = offsets[b], offsets[b + 1]
        row, frame = int(state.rows[slot]), int(state.frames[slot])
        end = row + last - first
        made.positions[first:last] = torch.arange(row, end)
        parity = state.feedback.parity[slot]
        made.feedback[b] = start if frame == 0 else state.feedback.data[parity, slot]
        made.after[0, b] = end + (x.frames - 1 if emits else 0)
        made.after[1, b] = frame + (x.frames if emits else 0)
        if emits:
            made.heard[b * x.frames : (b + 1) * x.frames] = torch.arange(frame, frame + x.frames)
            made.steps[:, b] = torch.arange(frame, frame + x.frames)
            made.said[:, b] = torch.arange(end, end + x.frames - 1)
        if b < x.speaking:
            made.ends[b] = max(last - 1, 0)
    return made


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
