"""The constants of dMel: window, mel filters, bin centres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.tiles import WIDTH, round_up

SAMPLE_RATE = 16_000
HOP = 800
WINDOW = 2 * HOP
NUM_BANDS = WINDOW // 2 + 1
NUM_MELS = 80
NUM_BINS = 16
LOG_MIN, LOG_MAX = -7.0, 2.0
FLOOR = 1e-10

_KNEE_HZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27


COLUMNS = 64
"""A frame seen as [25, 64] is transformed along its 25 rows, then along its 64 columns."""
ROWS = WINDOW // COLUMNS
HALF_ROWS = ROWS // 2 + 1
"""Rows of the transform that are not the conjugates of others."""
TAPS = 64
"""Bands from a filter's first on outside which it is zero."""


@dataclass(frozen=True)
class DMelWeights:
    """fp32: window [1600], filters [80, 816] (801 bands, then zeros, a multiple of 16), centres
    [16].

    The kernel's tables, fp32: edges [16], the largest sum of a filter that falls into each bin, as
    `nearest` rounds; cosines and sines of the transform in two stages, row_waves [2, 16, 32] (13 by
    25, then zeros), twiddles [2, 16, 64], column_waves [2, 64, 64]; and starts [80] int32, each
    filter's first band that counts.
    """

    window: Tensor
    filters: Tensor
    centres: Tensor
    edges: Tensor
    row_waves: Tensor
    twiddles: Tensor
    column_waves: Tensor
    starts: Tensor


def nearest(sums: Tensor, centres: Tensor) -> Tensor:
    """Sums of filters [...] -> the nearest centre to their logarithm, the lower of two: int64."""
    level = sums.clamp_min(FLOOR).log10().clamp(LOG_MIN, LOG_MAX)
    return (level[..., None] - centres).abs().argmin(-1)


def bin_edges(centres: Tensor) -> Tensor:
    """[16] fp32: the largest sum that `nearest` puts into each bin, infinity for the last.

    By bisection over the bits of positive numbers, which are in the order of the numbers.
    """
    low = torch.zeros(NUM_BINS, dtype=torch.int32)
    high = torch.full_like(low, 0x7F800000)
    wanted = torch.arange(NUM_BINS)
    for _ in range(31):
        middle = low + (high - low + 1) // 2
        fits = nearest(middle.view(torch.float32), centres) <= wanted
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle - 1)
    return low.view(torch.float32)


def _waves(rows: int, columns: int, period: int, shape: tuple[int, int]) -> Tensor:
    """[2, *shape] fp32: cosine and sine of row * column turns of `period`, zeros around them."""
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % period
    angles = turns.double() * (2 * math.pi / period)
    waves = torch.stack((angles.cos(), angles.sin())).float()
    return F.pad(waves, (0, shape[1] - columns, 0, shape[0] - rows))


def slaney_hz(mels: Tensor) -> Tensor:
    """Slaney's scale: 200/3 Hz a mel up to 1 kHz (15 mel), from there a factor of 6.4 every 27."""
    above = _KNEE_HZ * torch.exp((mels - _KNEE_MEL).clamp(min=0) * _LOG_STEP)
    return torch.where(mels < _KNEE_MEL, mels * (_KNEE_HZ / _KNEE_MEL), above)


def mel_filters() -> Tensor:
    """[80, 801] fp64: triangles between neighbouring points of 82 that are even in mel from 0 to
    8 kHz, each of area 1 in Hz (height 2 / width).
    """
    top = _KNEE_MEL + math.log(SAMPLE_RATE / 2 / _KNEE_HZ) / _LOG_STEP
    corners = slaney_hz(torch.linspace(0, top, NUM_MELS + 2, dtype=torch.float64))
    bands = torch.linspace(0, SAMPLE_RATE / 2, NUM_BANDS, dtype=torch.float64)
    left, peak, right = (corners[i : i + NUM_MELS, None] for i in range(3))
    rising, falling = (bands - left) / (peak - left), (right - bands) / (right - peak)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (right - left))


def dmel_weights(device: torch.device | str = "cpu") -> DMelWeights:
    """Periodic Hann window, slaney mel filters, centres -7 + 0.6 k (spec/inkling.md 1.4)."""
    padding = round_up(NUM_BANDS, WIDTH) - NUM_BANDS
    filters = F.pad(mel_filters().float(), (0, padding))
    centres = torch.linspace(LOG_MIN, LOG_MAX, NUM_BINS, dtype=torch.float64).float()
    # Multiples of four, so that rows are read 16 bytes at a time.
    starts = ((filters > 0).int().argmax(1) // 4 * 4).clamp(max=filters.shape[1] - TAPS)
    return DMelWeights(
        torch.hann_window(WINDOW, periodic=True, dtype=torch.float32).to(device),
        filters.to(device),
        centres.to(device),
        bin_edges(centres).to(device),
        _waves(HALF_ROWS, ROWS, ROWS, (16, 32)).to(device),
        _waves(HALF_ROWS, COLUMNS, WINDOW, (16, COLUMNS)).to(device),
        _waves(COLUMNS, COLUMNS, COLUMNS, (COLUMNS, COLUMNS)).to(device),
        starts.int().to(device),
    )
