"""What the interaction model argues against: a turn-based model in a harness.

A voice-activity detector (webrtcvad) finds where somebody speaks, a rule ends the turn after so
much silence, the model answers the turn, its answer is played, and speech meanwhile cancels what is
left of it (spec/interaction.md 5). Time does not exist for the model between turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.speech import SAMPLE_RATE, Audio, Utterance, Word

FRAME_MS = 10
FRAME = SAMPLE_RATE * FRAME_MS // 1000


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


@dataclass(frozen=True, eq=False)
class Turn:
    """What somebody said, from lead to the end of silence, and the pictures of that time."""

    start: float
    audio: Audio
    pictures: Sequence[NDArray[np.uint8]] = ()


class Conversation(Protocol):
    """A model that answers turns; it remembers those before."""

    def answer(self, turn: Turn) -> Utterance: ...


@dataclass
class _Voice:
    """Runs of voice and silence, a frame at a time."""

    voiced: int = 0
    silent: int = 0

    def hear(self, is_speech: bool) -> None:
        self.voiced, self.silent = (self.voiced + 1, 0) if is_speech else (0, self.silent + 1)


@dataclass
class _Playing:
    """An answer being played from `start` on; `end` moves when it is cancelled."""

    start: float
    spoken: Utterance
    end: float = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.start + self.spoken.seconds


def converse(scene: Scene, model: Conversation, rules: Rules) -> Reply:
    """The harness around `model` through one scene."""
    from webrtcvad import Vad

    detector, voice = Vad(rules.aggressiveness), _Voice()
    pcm = (np.clip(scene.audio, -1, 1) * 32767).astype(np.int16)
    onset, silence = rules.onset_ms // FRAME_MS, rules.silence_ms // FRAME_MS
    answers: list[_Playing] = []
    began: int | None = None
    for index in range(len(pcm) // FRAME):
        frame = pcm[index * FRAME : (index + 1) * FRAME]
        voice.hear(detector.is_speech(frame.tobytes(), SAMPLE_RATE))
        now = (index + 1) * FRAME_MS / 1000
        if began is None and voice.voiced >= onset:
            began = max(0, (index + 1 - voice.voiced) * FRAME - rules.lead_ms * SAMPLE_RATE // 1000)
            if answers and answers[-1].end > now:
                answers[-1].end = max(now, answers[-1].start)
        elif began is not None and voice.silent >= silence:
            turn = _turn(scene, began, (index + 1) * FRAME)
            answers.append(_Playing(now + rules.thinking_ms / 1000, model.answer(turn)))
            began = None
    return _mixed(scene, answers)


def _turn(scene: Scene, start: int, end: int) -> Turn:
    begin, until = start / SAMPLE_RATE, end / SAMPLE_RATE
    pictures: list[NDArray[np.uint8]] = []
    if scene.film is not None:
        pictures = [p for at, p in scene.film.pictures(until) if at >= begin]
    return Turn(begin, scene.audio[start:end], pictures)


def _mixed(scene: Scene, answers: Sequence[_Playing]) -> Reply:
    """What was played, cut where it was cancelled and where the scene ends."""
    audio = np.zeros(len(scene.audio), np.float32)
    words: list[Word] = []
    for answer in answers:
        end = min(answer.end, scene.seconds)
        at = round(answer.start * SAMPLE_RATE)
        piece = answer.spoken.audio[: max(0, round(end * SAMPLE_RATE) - at)]
        audio[at : at + len(piece)] += piece[: len(audio) - at] if at < len(audio) else 0
        words += _until(answer, end)
    return Reply(tuple(words), audio)


def _until(answer: _Playing, end: float) -> Iterator[Word]:
    for word in answer.spoken.words:
        start = answer.start + word.start
        if start < end:
            yield Word(word.text, start, min(answer.start + word.end, end))
