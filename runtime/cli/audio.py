"""Recordings in, replies out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.cli.errors import UsageError

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """samples [N] fp32, mono."""

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_recording(path: Path) -> Recording:
    """Any file libsndfile or FFmpeg can decode, mixed to mono.

    Raises UsageError when the file is missing, is not audio, is empty, or holds NaN.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a recording (WAV, FLAC, MP3, OGG, M4A, ...)")
    samples, rate = _by_soundfile(path) or _by_av(path)
    if not len(samples):
        raise UsageError(f"{path} holds no samples")
    if not np.isfinite(samples).all():
        raise UsageError(f"{path} holds NaN or infinite samples; repair the file first")
    return Recording(samples, rate)


def _by_soundfile(path: Path) -> tuple[Samples, int] | None:
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    return samples.mean(axis=1, dtype=np.float32), int(rate)


def _by_av(path: Path) -> tuple[Samples, int]:
    import av

    pieces: list[Any] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UsageError(f"{path} has no audio track")
            stream = container.streams.audio[0]
            rate = int(stream.rate)
            mono = av.AudioResampler(format="flt", layout="mono", rate=rate)
            for frame in container.decode(stream):
                pieces += [part.to_ndarray().reshape(-1) for part in mono.resample(frame)]
            pieces += [part.to_ndarray().reshape(-1) for part in mono.resample(None)]
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} is not audio that can be decoded: {reason}") from error
    joined = np.concatenate(pieces) if pieces else np.zeros(0)
    return joined.astype(np.float32), rate


def write_wav(path: Path, samples: Samples, rate: int, comment: str) -> None:
    """samples [N] fp32 as 16-bit mono PCM; the comment goes into the file's own metadata."""
    import soundfile

    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_16", format="WAV") as file:
        file.comment = comment
        file.software = "microturn"
        file.write(np.clip(samples, -1.0, 1.0))


def level(samples: Samples) -> float:
    """Loudness for a meter: 0 at -60 dBFS rms and below, 1 at full scale."""
    if not len(samples):
        return 0.0
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    return min(1.0, max(0.0, 1.0 + math.log10(max(rms, 1e-9)) / 3.0))
