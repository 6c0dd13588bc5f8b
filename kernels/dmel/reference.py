"""dmel in plain torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import run_lines
from microturn.kernels.dmel.weights import FLOOR, NUM_MELS, WINDOW, DMelWeights
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


def mel_sums(frames: Tensor, weights: DMelWeights) -> Tensor:
    """frames [..., 1600] -> the mel-weighted sums of magnitudes [..., 80]."""
    spectrum = torch.view_as_real(torch.fft.rfft(frames * weights.window))
    magnitudes = spectrum.square().sum(-1).clamp_min(FLOOR).sqrt()
    padded = F.pad(magnitudes, (0, weights.filters.shape[1] - magnitudes.shape[-1]))
    return matmul_rows(padded, weights.filters)


def _bins(frames: Tensor, weights: DMelWeights) -> Tensor:
    """As `nearest`, by the edges it was measured to have; a NaN is bin 0, as there."""
    sums = mel_sums(frames, weights)
    return torch.bucketize(sums.nan_to_num(FLOOR, math.inf), weights.edges)


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
    if not rows.lines:
        bins = torch.zeros(x.shape[0], NUM_MELS, dtype=torch.int64, device=x.device)
        return bins if out is None else out.copy_(bins)
    frames = run_lines(_framed, x, state, rows, width=WINDOW)
    bins = _bins(frames, weights)
    if rows.line_length is None:
        bins = torch.zeros_like(bins).index_copy(0, rows.run_rows, bins[rows.run_rows])
    return bins if out is None else out.copy_(bins)


def _framed(
    x: Tensor, *, carry: Tensor | None = None, fresh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [N, L, 800], carry [N, 800] -> ([N, L, 1600], each hop behind the one before it; next
    carry). See `carry.CarryCore`.
    """
    lines, length, hop = x.shape
    if carry is None:
        before = x.new_zeros(lines, 1, hop)
    else:
        kept = carry if fresh is None else torch.where(fresh[:, None], 0.0, carry)
        before = kept.unsqueeze(1)
    heard = torch.cat((before, x), 1)
    frames = heard.as_strided((lines, length, 2 * hop), (heard.stride(0), hop, 1))
    return frames, x[:, -1]
