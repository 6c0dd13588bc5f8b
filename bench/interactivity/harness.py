"""What the interaction model argues against: a turn-based model in a harness.

A voice-activity detector (webrtcvad) finds where somebody speaks, a rule ends the turn after so
much silence, the model answers the turn, its answer is played, and speech meanwhile cancels what is
left of it (spec/interaction.md 5).

The network in it is stepped as everywhere, but time does not exist for it between turns: it is fed
a turn from lead to the end of its silence, all at once, and whatever it would say meanwhile is
lost; then it is fed exact silence, the last picture before it, and what it says in that is its
answer, played as it comes. It is over once nothing was said for QUIET_MS, or cancelled; the next
turn follows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import soxr

from microturn.bench.interactivity.duplex import spoken_words
from microturn.bench.interactivity.lanes import Life, Moment, Says
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Word

if TYPE_CHECKING:
    from microturn.model.family import TickShape
    from microturn.runtime import TextEvent

FRAME_MS = 10
FRAME = SAMPLE_RATE * FRAME_MS // 1000
QUIET_MS = 800
LONGEST_MS = 16_000
"""An answer that is still being given after so long is cut off."""


@dataclass(frozen=True)
class Rules:
    """What `tune` chooses on the validation split.

    aggressiveness  of webrtcvad, 0 to 3
    onset_ms        voice for so long begins a turn, or cancels an answer
    silence_ms      silence for so long ends a turn
    lead_ms         audio from before the onset that belongs to the turn
    thinking_ms     from the end of a turn to its answer
    """

    aggressiveness: int = 2
    onset_ms: int = 120
    silence_ms: int = 400
    lead_ms: int = 150
    thinking_ms: int = 100


@dataclass
class _Voice:
    """Runs of voice and silence, a frame at a time."""

    voiced: int = 0
    silent: int = 0

    def hear(self, is_speech: bool) -> None:
        self.voiced, self.silent = (self.voiced + 1, 0) if is_speech else (0, self.silent + 1)


@dataclass
class _Answer:
    """What is being played from `start` on, tick by tick; times in seconds of the scene."""

    start: float
    tick: float
    said: list[Says] = field(default_factory=list)
    cancelled: float | None = None

    @property
    def next_at(self) -> float:
        return self.start + self.tick * len(self.said)

    @property
    def over(self) -> bool:
        quiet = round(QUIET_MS / 1000 / self.tick)
        if len(self.said) >= round(LONGEST_MS / 1000 / self.tick):
            return True
        return len(self.said) >= quiet and not any(out.words for out in self.said[-quiet:])

    def events(self) -> Iterator[TextEvent]:
        """By scene time; none of what was cancelled."""
        for index, output in enumerate(self.said):
            begin = 1000 * (self.start + self.tick * index)
            for event in output.words:
                at = begin + event.ms - output.start_ms
                if self.cancelled is None or at < 1000 * self.cancelled:
                    yield event._replace(ms=at)


def live(scene: Scene, shape: TickShape, rules: Rules) -> Life:
    """The harness around a network through one scene."""
    from webrtcvad import Vad

    detector, voice = Vad(rules.aggressiveness), _Voice()
    pcm = (np.clip(scene.audio, -1, 1) * 32767).astype(np.int16)
    onset, silence = rules.onset_ms // FRAME_MS, rules.silence_ms // FRAME_MS
    answers: list[_Answer] = []
    playing: _Answer | None = None
    began: int | None = None
    moment = Moment(np.zeros(0, np.float32))
    for index in range(len(pcm) // FRAME):
        frame = pcm[index * FRAME : (index + 1) * FRAME]
        voice.hear(detector.is_speech(frame.tobytes(), SAMPLE_RATE))
        now = (index + 1) * FRAME_MS / 1000
        if began is None and voice.voiced >= onset:
            began = max(0, (index + 1 - voice.voiced) * FRAME - rules.lead_ms * SAMPLE_RATE // 1000)
            if playing is not None:
                playing.cancelled, playing = now, None
        elif began is not None and voice.silent >= silence:
            for moment in _turn(scene, began, (index + 1) * FRAME, shape):
                yield moment
            playing, began = _Answer(now + rules.thinking_ms / 1000, shape.tick_ms / 1000), None
            answers.append(playing)
        if playing is not None and now >= playing.next_at - 1e-9:
            quiet = np.zeros(shape.input_samples, np.float32)
            playing.said.append((yield Moment(quiet, moment.picture)))
            playing = None if playing.over else playing
    return _mixed(scene, answers, shape.output_rate)


def _turn(scene: Scene, start: int, end: int, shape: TickShape) -> Iterator[Moment]:
    """Samples [start, end) of the scene, a tick at a time, silence after its end."""
    for begin in range(start, end, shape.input_samples):
        piece = scene.audio[begin : min(end, begin + shape.input_samples)]
        at = begin / SAMPLE_RATE
        yield Moment(
            np.pad(piece, (0, shape.input_samples - len(piece))),
            scene.film.picture(at) if scene.film else None,
            at,
        )


def _mixed(scene: Scene, answers: list[_Answer], rate: int) -> Reply:
    """What was played, cut where it was cancelled and where the scene ends."""
    audio = np.zeros(len(scene.audio), np.float32)
    words: list[Word] = []
    for answer in answers:
        words += spoken_words(answer.events())
        if answer.said:
            made = np.concatenate([output.audio for output in answer.said])
            piece: Audio = soxr.resample(made, rate, SAMPLE_RATE).astype(np.float32)
            at = round(answer.start * SAMPLE_RATE)
            until = scene.seconds if answer.cancelled is None else answer.cancelled
            piece = piece[: max(0, min(len(audio), round(until * SAMPLE_RATE)) - at)]
            audio[at : at + len(piece)] += piece
    return Reply(tuple(word for word in words if word.start < scene.seconds), audio)
