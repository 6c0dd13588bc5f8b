"""The model as it is meant to be used: a session hears and sees its scene tick by tick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import soxr

from microturn.bench.interactivity.lanes import Life, Moment
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import PUNCTUATION, SAMPLE_RATE, Audio, Word

if TYPE_CHECKING:
    from microturn.model.family import TickShape
    from microturn.runtime import TextEvent

SPOKEN_SECONDS = 0.35
"""How long a word of the text stream is taken to last."""


def live(scene: Scene, shape: TickShape, *, leak_db: float | None = None) -> Life:
    """leak_db: how loud the model's own voice is in its microphone, against full scale of what it
    says; None: not at all. Times are those of the world: what a tick says is heard once it is over.
    """
    piece, seconds = shape.input_samples, shape.tick_ms / 1000
    ticks = -(-len(scene.audio) // piece)
    audio = np.pad(scene.audio, (0, ticks * piece - len(scene.audio)))
    own = soxr.ResampleStream(shape.output_rate, SAMPLE_RATE, 1, dtype="float32")
    said: list[Audio] = []
    events: list[TextEvent] = []
    leak: Audio = np.zeros(0, np.float32)
    for tick in range(ticks):
        heard = audio[tick * piece : (tick + 1) * piece]
        if leak_db is not None:
            heard = heard + 10 ** (leak_db / 20) * _first(leak, piece)
            leak = leak[piece:]
        picture = scene.film.picture(tick * seconds) if scene.film else None
        output = yield Moment(np.clip(heard, -1, 1).astype(np.float32), picture, tick * seconds)
        events += output.words
        said.append(own.resample_chunk(output.audio, last=tick == ticks - 1))
        leak = np.concatenate([leak, said[-1]])
    words = tuple(spoken_words(events, later=seconds))
    late = np.zeros(piece, np.float32)
    return Reply(words, np.concatenate([late, *said])[: len(audio)])


def _first(audio: Audio, samples: int) -> Audio:
    """[samples]: the beginning of audio, silence after its end."""
    piece = audio[:samples]
    return np.pad(piece, (0, samples - len(piece)))


def spoken_words(events: Iterable[TextEvent], *, later: float = 0.0) -> Iterator[Word]:
    """Whole words of a text stream: pieces that do not open a word belong to the one before.
    later: seconds from media time to the time they are heard.
    """
    text, start = "", 0.0
    for event in events:
        opens = event.piece[:1] == " " or not text
        if opens and text:
            yield Word(text, start, start + SPOKEN_SECONDS)
            text = ""
        if not text:
            start = event.ms / 1000 + later
        text += event.piece.strip(" " + PUNCTUATION).lower()
    if text:
        yield Word(text, start, start + SPOKEN_SECONDS)
