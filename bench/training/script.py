"""A scene as the model meets it: what it hears and sees, and what it should write, slot by slot."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray

from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.vocabulary import SPOKEN
from microturn.bench.training.lexicon import Lexicon
from microturn.kernels.dmel.reference import core as dmel
from microturn.kernels.dmel.weights import dmel_weights

SLOT = 0.05
TICK_SLOTS = 2
SLOT_SAMPLES = 800
NOTED = 2
"""Slots from the end of a heard word to its note: the ear needs the frame after it."""
NEVER = 0
HORIZONS = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Seconds until the next utterance, as classes; NEVER for none and for later ones."""


@dataclass(frozen=True)
class Script:
    """K ticks of two slots.

    bins     [2 * K, 80] uint8, the audio as dMel
    pictures [K, 40, 39, 3] uint8, one a tick, None where nothing is seen
    text     [2 * K] int64, the text ids to write
    word     [2 * K] int64, 1 + index in SPOKEN of the word whose sound begins, goes on ... see
             `since`; 0 for silence
    since    [2 * K] int64, codec frames since that word began
    due      [2 * K] int64, class of HORIZONS until the next word is to be written
    pending  [2 * K] int64, 1 + index in SPOKEN of that word
    hearing  [2 * K] int64, `Lexicon.heard_class` of the word that is being heard, 0 for none
    """

    bins: NDArray[np.uint8]
    pictures: NDArray[np.uint8] | None
    text: NDArray[np.int64]
    word: NDArray[np.int64]
    since: NDArray[np.int64]
    due: NDArray[np.int64]
    pending: NDArray[np.int64]
    hearing: NDArray[np.int64]

    @property
    def ticks(self) -> int:
        return len(self.text) // TICK_SLOTS


def script(scene: Scene, lexicon: Lexicon) -> Script:
    """Audio of a word begins in the slot after its text. What a tick says is heard when it is over,
    so everything is written one tick ahead of the time at which it is expected.
    """
    ticks = -(-len(scene.audio) // (TICK_SLOTS * SLOT_SAMPLES))
    slots = TICK_SLOTS * ticks
    audio = np.pad(scene.audio, (0, slots * SLOT_SAMPLES - len(scene.audio)))
    bins = dmel(torch.from_numpy(audio).view(slots, SLOT_SAMPLES), dmel_weights())
    text = np.full(slots, lexicon.listen_id, np.int64)
    word, since = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    starts: list[tuple[int, int]] = []
    for want in scene.expected:
        slot = max(0, int((want.at - TICK_SLOTS * SLOT) / SLOT))
        index = SPOKEN.index(want.word) + 1
        text[slot] = lexicon.said[want.word]
        word[slot + 1 :], since[slot + 1 :] = index, np.arange(slots - slot - 1)
        starts.append((slot, index))
    for moment in scene.hush:
        first = ceil((moment - TICK_SLOTS * SLOT) / SLOT)
        following = min((slot for slot, _ in starts if slot >= first), default=slots)
        word[first : following + 1] = 0
    hearing = np.zeros(slots, np.int64)
    for heard in scene.heard:
        slot = int(heard.end / SLOT) + NOTED
        hearing[int(heard.start / SLOT) : slot] = lexicon.heard_class(heard.text)
        while slot < slots and text[slot] != lexicon.listen_id:
            slot += 1
        if slot < slots:
            text[slot] = lexicon.heard_id(heard.text)
    due, pending = _ahead(starts, slots)
    pictures = None
    if scene.film is not None:
        frames = [scene.film.picture(k * TICK_SLOTS * SLOT) for k in range(ticks)]
        pictures = np.stack(frames)
    made = bins.numpy().astype(np.uint8)
    return Script(made, pictures, text, word, since, due, pending, hearing)


def _ahead(
    starts: list[tuple[int, int]], slots: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    due, pending = np.full(slots, NEVER, np.int64), np.zeros(slots, np.int64)
    before = 0
    for slot, index in starts:
        seconds = (slot - np.arange(before, slot + 1)) * SLOT
        classes = 1 + np.searchsorted(HORIZONS, seconds - 1e-9)
        near = classes <= len(HORIZONS)
        due[before : slot + 1] = np.where(near, classes, NEVER)
        pending[before : slot + 1] = index
        before = slot + 1
    return due, pending
