"""The same network used turn by turn: what the harness talks to, and how the harness is tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import soxr

from microturn.bench.interactivity.duplex import spoken_words
from microturn.bench.interactivity.harness import Rules, Turn
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.scoring import score
from microturn.bench.interactivity.speech import SAMPLE_RATE, Utterance, Word

if TYPE_CHECKING:
    from microturn.runtime import Output, Runtime

QUIET_MS = 800
"""An answer is over once nothing was said for so long."""
LONGEST_MS = 8_000


class TurnSession:
    """One session that hears a turn, and only then, in silence, gives its answer. Between turns no
    time passes for it. The runtime's clock must be by hand and have no other session.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session = runtime.open(seed=0)
        self._shape = runtime.family.shape

    def answer(self, turn: Turn) -> Utterance:
        """Words by the time from the answer's beginning; what it said during the turn is lost."""
        piece, tick_ms = self._shape.input_samples, self._shape.tick_ms
        ticks = -(-len(turn.audio) // piece)
        heard = np.pad(turn.audio, (0, ticks * piece - len(turn.audio)))
        shown = len(turn.pictures)
        for k in range(ticks):
            for picture in turn.pictures[k * shown // ticks : (k + 1) * shown // ticks]:
                self._session.push_image(picture)
            self._tick(heard[k * piece : (k + 1) * piece])
        answer: list[Output] = []
        quiet = 0
        while quiet < QUIET_MS // tick_ms and len(answer) < LONGEST_MS // tick_ms:
            answer.append(self._tick(np.zeros(piece, np.float32)))
            quiet = 0 if answer[-1].words else quiet + 1
        begin = answer[0].start_ms / 1000
        words = spoken_words((event for output in answer for event in output.words), later=-begin)
        audio = np.concatenate([output.audio for output in answer])
        rate = self._shape.output_rate
        return Utterance(
            soxr.resample(audio, rate, SAMPLE_RATE).astype(np.float32),
            tuple(Word(w.text, max(0.0, w.start), w.end) for w in words),
        )

    def close(self) -> None:
        self._session.close()

    def _tick(self, audio: np.ndarray) -> Output:
        self._session.push_audio(audio, SAMPLE_RATE)
        self._runtime.tick()
        output = self._session.poll()
        if output is None:
            raise RuntimeError(f"a tick gave no output ({self._session.closed_reason})")
        return output


SILENCES_MS = (200, 300, 400, 500, 700)
AGGRESSIVENESS = (1, 2, 3)


def tune(play: Callable[[Scene, Rules], Reply], scenes: Sequence[Scene]) -> tuple[Rules, float]:
    """The rules under which most plain questions are answered right, the promptest of equals; and
    that share. First the silence that ends a turn is chosen, then the detector's aggressiveness.
    scenes: of the task `latency`, from the validation split.
    """

    def worth(rules: Rules) -> tuple[float, int]:
        right = sum(score(scene, play(scene, rules))["score"] for scene in scenes) / len(scenes)
        return right, -rules.silence_ms

    silences = [replace(Rules(), silence_ms=ms) for ms in SILENCES_MS]
    prompt = max(silences, key=worth)
    best = max((replace(prompt, aggressiveness=a) for a in AGGRESSIVENESS), key=worth)
    return best, worth(best)[0]
