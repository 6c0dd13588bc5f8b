"""dmel in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.dmel.weights import FLOOR, NUM_MELS, DMelWeights, nearest
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


def mel_sums(frames: Tensor, weights: DMelWeights) -> Tensor:
    """frames [..., 1600] -> the mel-weighted sums of magnitudes [..., 80]."""
    spectrum = torch.view_as_real(torch.fft.rfft(frames * weights.window))
    magnitudes = spectrum.square().sum(-1).clamp_min(FLOOR).sqrt()
    padded = F.pad(magnitudes, (0, weights.filters.shape[1] - magnitudes.shape[-1]))
    return matmul_rows(padded, weights.filters)


def _bins(frames: Tensor, weights: DMelWeights) -> Tensor:
    return nearest(mel_sums(frames, weights), weights.centres)


def core(audio: Tensor, weights: DMelWeights) -> Tensor:
    """Whole sequences: audio [..., F, 800], zeros before each -> bins [..., F, 80] int64."""
    before = F.pad(audio[..., :-1, :], (0, 0, 1, 0))
    return _bins(torch.cat((before, audio), -1), weights)


def dmel_reference(
    x: Tensor,
    weights: DMelWeights,
    state: Twice | None,
    rows: RowBatch,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `dmel`."""
    lines = rows.lines
    if not lines:
        bins = torch.zeros(x.shape[0], NUM_MELS, dtype=torch.int64, device=x.device)
        return bins if out is None else out.copy_(bins)
    before = torch.cat((x[:1], x[:-1]))
    starts = [line.start for line in lines]
    if state is None:
        before[starts] = 0.0
    else:
        carried = state.read(rows.line_slots)
        if rows.fresh_lines is not None:
            carried = torch.where(rows.fresh_lines[:, None], 0.0, carried)
        before[starts] = carried
        state.write(rows.line_slots, x[[line.stop - 1 for line in lines]])
    frames = torch.cat((before, x), 1)
    run = rows.run_rows
    if run.shape[0] == x.shape[0]:
        bins = _bins(frames, weights)
    else:
        bins = torch.zeros(x.shape[0], NUM_MELS, dtype=torch.int64, device=x.device)
        bins[run] = _bins(frames[run], weights)
    return bins if out is None else out.copy_(bins)
