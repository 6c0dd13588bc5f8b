"""`microturn codec`: audio to codes and back, with a released codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microturn.runtime.cli.audio import read_recording
from microturn.runtime.cli.errors import UsageError, usage_errors
from microturn.runtime.cli.released import load_codec, written


def encode(speech: Path, checkpoint: Path, out: Path, *, books: int | None) -> tuple[int, int]:
    """Writes the codes of a recording, [Q, F] int64; returns that shape.

    Audio of another rate is resampled, and what is left of a last frame is filled with silence.
    Raises UsageError on a recording or a checkpoint that does not fit.
    """
    import soxr
    import torch

    recording = read_recording(speech)
    codec = load_codec(checkpoint, books=books)
    config = codec.config
    samples = recording.samples
    if recording.rate != config.sample_rate:
        samples = soxr.resample(samples, recording.rate, config.sample_rate)
    audio = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    audio = torch.nn.functional.pad(audio, (0, -len(audio) % config.frame_size))
    with torch.inference_mode():
        codes = codec.encode(audio).T.contiguous().numpy()
    written(out, lambda path: _save(path, codes))
    return codes.shape[0], codes.shape[1]


def decode(codes: Path, checkpoint: Path, out: Path) -> float:
    """Writes the audio of codes [Q, F] as 32-bit float, mono; returns its seconds.

    Nothing is clipped, so that what is compared is what was computed. Raises UsageError on codes or
    a checkpoint that do not fit.
    """
    import soundfile
    import torch

    array = read_codes(codes)
    codec = load_codec(checkpoint, books=len(array))
    rate = codec.config.sample_rate
    with torch.inference_mode(), usage_errors(ValueError):
        audio = codec.decode(torch.from_numpy(array.T.copy())).numpy()
    written(out, lambda path: soundfile.write(path, audio, rate, subtype="FLOAT", format="WAV"))
    return len(audio) / rate


def read_codes(path: Path) -> NDArray[np.int64]:
    """An .npy file of integers [Q, F], neither of them 0. Raises UsageError on anything else."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give codes as .npy") from error
    except ValueError as error:
        raise UsageError(f"{path} is not an .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
        raise UsageError(f"{path} must hold integer codes [Q, F], one row for each codebook")
    if not array.size:
        raise UsageError(f"{path} holds no codes, got shape {list(array.shape)}")
    return array.astype(np.int64)


def _save(path: Path, codes: NDArray[np.int64]) -> None:
    with path.open("wb") as file:  # np.save would add an ending of its own
        np.save(file, codes)
