"""Sounds for what listens: what a microphone may bring, and what a transform finds hard."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RATE, HOP = 16_000, 800
RECORDING = Path(__file__).parents[1] / "data" / "jfk.flac"


def hops_of(samples: Tensor) -> Tensor:
    """[n] -> [ceil(n / 800), 800], zeros behind the last sample."""
    missing = -len(samples) % HOP
    return F.pad(samples, (0, missing)).view(-1, HOP)


def frames_of(audio: Tensor) -> Tensor:
    """[F, 800] -> [F, 1600]: each hop behind the one before, zeros before the first."""
    return torch.cat((F.pad(audio[:-1], (0, 0, 1, 0)), audio), -1)


def signals() -> dict[str, Tensor]:
    """10 s or so of each, by name."""
    import soundfile
    import soxr

    t = torch.arange(10 * RATE) / RATE
    glide = torch.sin(2 * math.pi * (50 * t + 390 * t.square()))
    buzz = sum(
        torch.sin(2 * math.pi * k * (120 * t + 20 * torch.sin(2 * t))) / k for k in range(1, 30)
    )
    speech, rate = soundfile.read(RECORDING)
    speech = soxr.resample(speech.mean(1), rate, RATE).astype(np.float32)
    return {
        "noise": 0.3 * torch.randn(10 * RATE),
        "fading noise": torch.logspace(0, -8, 10 * RATE) * torch.randn(10 * RATE),
        "sweep": 0.7 * glide * (0.55 + 0.45 * torch.sin(9 * t)),
        "voice-like buzz": 0.2 * torch.as_tensor(buzz) * torch.sin(3 * t).clamp(min=0),
        "sine on a band": torch.sin(2 * math.pi * 1000 * t),
        "sine between bands": torch.sin(2 * math.pi * 3333.3 * t),
        "silence": torch.zeros(RATE),
        "clicks": torch.zeros(5 * RATE).index_fill_(0, torch.arange(100, 5 * RATE, 2345), 1.0),
        "a hop and a sample": torch.randn(801),
        "speech": torch.from_numpy(speech),
    }
