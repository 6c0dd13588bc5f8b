"""How far decoded speech is from the original: waveform, spectra, mel bands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

RESOLUTIONS = (512, 1024)
"""Samples of a window; hop a quarter."""
MEL_WINDOW, NUM_MELS = 1024, 64
FLOOR = 0.1
"""Added to magnitudes before the logarithm: what lies below is silence to the loss."""


@dataclass(frozen=True)
class Distance:
    """Means over the batch. wave: L1; phase: of the complex spectra, relative; convergence, log: of
    their magnitudes; mel: L1 of log bands.
    """

    wave: Tensor
    phase: Tensor
    convergence: Tensor
    log: Tensor
    mel: Tensor

    @property
    def total(self) -> Tensor:
        return 5 * self.wave + self.phase + 0.5 * self.convergence + 0.5 * self.log + 2 * self.mel


def distance(given: Tensor, wanted: Tensor, sample_rate: int) -> Distance:
    """given, wanted [N, samples] -> their distance; differentiable in `given`."""
    phase = convergence = log = mel = given.new_zeros(())
    for window in RESOLUTIONS:
        x, y = _spectrum(given, window), _spectrum(wanted, window)
        a, b = _magnitudes(x), _magnitudes(y)
        size = b.norm().clamp_min(1e-3)
        phase = phase + (x - y).norm() / size
        convergence = convergence + (a - b).norm() / size
        log = log + _log_l1(a, b)
        if window == MEL_WINDOW:
            bands = _mel_bands(sample_rate)
            mel = _log_l1(bands @ a, bands @ b)
    n = len(RESOLUTIONS)
    return Distance((given - wanted).abs().mean(), phase / n, convergence / n, log / n, mel)


def _log_l1(a: Tensor, b: Tensor) -> Tensor:
    return ((a + FLOOR).log() - (b + FLOOR).log()).abs().mean()


def _spectrum(audio: Tensor, window: int) -> Tensor:
    """[N, samples] -> [N, window / 2 + 1, frames, 2]: real and imaginary parts."""
    return torch.view_as_real(
        torch.stft(
            audio,
            window,
            window // 4,
            window=_hann(window),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
    )


def _magnitudes(spectrum: Tensor) -> Tensor:
    return (spectrum.square().sum(-1) + 1e-7).sqrt()


@cache
def _hann(window: int) -> Tensor:
    return torch.hann_window(window)


@cache
def _mel_bands(sample_rate: int) -> Tensor:
    """[NUM_MELS, MEL_WINDOW / 2 + 1]: triangles of area 1 between 60 Hz and 8 kHz."""

    def mel(hz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hz / 700)

    low, high = mel(torch.tensor([60.0, 8000.0]))
    edges = 700 * (10 ** (torch.linspace(float(low), float(high), NUM_MELS + 2) / 2595) - 1)
    hz = torch.linspace(0, sample_rate / 2, MEL_WINDOW // 2 + 1)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(rising, falling).clamp_min(0)
    # A narrow triangle may fall between two bins: its middle bin then.
    nearest = (hz - edges[1:-1, None]).abs().argmin(1)
    empty = bands.sum(1) == 0
    bands[empty, nearest[empty]] = 1.0
    return bands / bands.sum(1, keepdim=True)
