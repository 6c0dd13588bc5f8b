"""From words to the codes that voice them."""

from __future__ import annotations

import numpy as np
import soxr
import torch
from torch import Tensor

from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio
from microturn.bench.interactivity.vocabulary import SPOKEN
from microturn.bench.training.batch import Voicing
from microturn.bench.training.voice import CODEC_RATE, spoken
from microturn.model.mimi import Mimi

BEFORE = 8
"""Frames of silence that a word follows when it is encoded: as in a session, nothing else is near.
"""
AFTER = 1
"""Frames of silence that belong to a word: the codec's tail rings off in them."""


@torch.inference_mode()
def voicing(codec: Mimi) -> Voicing:
    """The codes of SPOKEN in the model's voice, and of silence that has lasted.

    Needs the extra `interactivity`.
    """
    quiet = _encode(codec, np.zeros(2 * BEFORE * codec.config.frame_size, np.float32))
    words = {1 + i: _word(codec, spoken(word)) for i, word in enumerate(SPOKEN)}
    return Voicing(words, quiet[-1])


def _word(codec: Mimi, sound: Audio) -> Tensor:
    frame = codec.config.frame_size
    audio = soxr.resample(sound, SAMPLE_RATE, CODEC_RATE)
    frames = -(-len(audio) // frame) + AFTER
    padded = np.pad(audio, (BEFORE * frame, frames * frame - len(audio)))
    return _encode(codec, padded.astype(np.float32))[BEFORE:]


def _encode(codec: Mimi, audio: Audio) -> Tensor:
    return codec.encode(torch.from_numpy(audio)).clone()
