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


@dataclass(frozen=True)
class DMelWeights:
    """fp32: window [1600], filters [80, 816] (801 bands, then zeros, a multiple of 16), centres
    [16].
    """

    window: Tensor
    filters: Tensor
    centres: Tensor


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
    centres = torch.linspace(LOG_MIN, LOG_MAX, NUM_BINS, dtype=torch.float64)
    return DMelWeights(
        torch.hann_window(WINDOW, periodic=True, dtype=torch.float32).to(device),
        F.pad(mel_filters().float(), (0, padding)).to(device),
        centres.float().to(device),
    )
