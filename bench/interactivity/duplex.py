"""The model as it is meant to be used: a session hears and sees its scene tick by tick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import soxr

from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import PUNCTUATION, SAMPLE_RATE, Audio, Word

if TYPE_CHECKING:
    from microturn.runtime import Output, Runtime, Session, TextEvent

SPOKEN_SECONDS = 0.35
"""How long a word of the text stream is taken to last."""


def play(runtime: Runtime, scenes: Sequence[Scene], *, leak_db: float | None = None) -> list[Reply]:
    """The replies of one session a scene, all at once; the runtime's clock must be by hand.

    leak_db: how loud the model's own voice is in its microphone, against full scale of what it
    says; None: not at all. Times are those of the world: what a tick says is heard once it is over.
    """
    parts = [_Part(runtime, runtime.open(seed=i), scene) for i, scene in enumerate(scenes)]
    while any(not part.over for part in parts):
        for part in parts:
            part.push(leak_db)
        runtime.tick()
        for part in parts:
            part.collect()
    for part in parts:
        part.session.close()
    return [part.reply() for part in parts]


class _Part:
    """A scene on its way through a session."""

    def __init__(self, runtime: Runtime, session: Session, scene: Scene) -> None:
        shape = runtime.family.shape
        if shape.input_rate != SAMPLE_RATE:
            raise ValueError(f"scenes are heard at {SAMPLE_RATE} Hz, not at {shape.input_rate} Hz")
        self.session = session
        self._piece, self._tick_ms = shape.input_samples, shape.tick_ms
        self._ticks = -(-len(scene.audio) // shape.input_samples)
        self._audio = np.pad(scene.audio, (0, self._ticks * self._piece - len(scene.audio)))
        self._pictures = iter(scene.film.pictures(scene.seconds) if scene.film else ())
        self._next = next(self._pictures, None)
        self._outputs: list[Output] = []
        self._own = soxr.ResampleStream(shape.output_rate, SAMPLE_RATE, 1, dtype="float32")
        self._said: list[Audio] = []
        self._leak: Audio = np.zeros(0, np.float32)

    @property
    def over(self) -> bool:
        return len(self._outputs) >= self._ticks

    def push(self, leak_db: float | None) -> None:
        """What the next tick hears and sees."""
        if self.over:
            return
        at = len(self._outputs) * self._piece
        heard = self._audio[at : at + self._piece]
        if leak_db is not None:
            own = self._leak[: self._piece]
            self._leak = self._leak[self._piece :]
            heard = heard + 10 ** (leak_db / 20) * np.pad(own, (0, self._piece - len(own)))
        self.session.push_audio(np.clip(heard, -1, 1).astype(np.float32), SAMPLE_RATE)
        end = (at + self._piece) / SAMPLE_RATE
        while self._next is not None and self._next[0] < end:
            self.session.push_image(self._next[1])
            self._next = next(self._pictures, None)

    def collect(self) -> None:
        while (output := self.session.poll()) is not None and not self.over:
            self._outputs.append(output)
            said = self._own.resample_chunk(output.audio, last=self.over)
            self._said.append(said)
            self._leak = np.concatenate([self._leak, said])

    def reply(self) -> Reply:
        events = [event for output in self._outputs for event in output.words]
        words = tuple(spoken_words(events, later=self._tick_ms / 1000))
        late = np.zeros(self._piece, np.float32)
        audio = np.concatenate([late, *self._said])[: len(self._audio)]
        return Reply(words, audio)


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
