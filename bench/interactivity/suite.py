"""The `interactivity` suite: systems through the scenes of a split, scored.

Rows add to schema 1: score in percent with low and high (95 %), count scenes, marks by name (see
scoring.py). The case says task, split, condition and by what it was scored: the text stream, or
what a recogniser heard in the audio.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from microturn.bench.interactivity.intervals import Estimate, estimate
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.scoring import score
from microturn.bench.interactivity.speech import Audio, Word
from microturn.bench.interactivity.tasks import make_scene

Play = Callable[[Sequence[Scene]], Sequence[Reply]]
Ear = Callable[[Audio], tuple[Word, ...]]
BATCH = 4
"""Scenes played at once: what two cores step within a tick, roughly."""

LEAK = "leak"
"""The condition in which the model hears its own voice: clean scenes, the rest is the player's."""

WORDS = "synthetic counterpart: ratios, not values, compare"


class Published(NamedTuple):
    """Percent, of the interaction model, of a turn-based one, of silence."""

    interaction: float
    turns: float
    silent: float


PUBLISHED: Mapping[str, Published] = {
    "timespeak": Published(64.7, 4.3, 0.0),
    "cuespeak": Published(81.7, 2.9, 0.0),
    "repcount": Published(35.4, 1.3, 0.0),
    "proactive": Published(33.5, 25.0, 25.0),
    "charades": Published(32.4, 0.0, 0.0),
}
"""spec/interaction.md 4."""


@dataclass(frozen=True)
class Plan:
    """What is played: so many scenes of each task."""

    tasks: tuple[str, ...]
    count: int
    split: str = "test"
    condition: str = "clean"

    @property
    def room(self) -> str:
        """What the scenes are made for."""
        return "clean" if self.condition == LEAK else self.condition


class Played(NamedTuple):
    """One scene, its reply, and the reply as it was heard (None without an ear)."""

    scene: Scene
    reply: Reply
    heard: Reply | None


def run(
    plan: Plan, play: Play, ear: Ear | None, watch: Callable[[Played], None] = lambda played: None
) -> Iterator[tuple[str, str, dict[str, Estimate]]]:
    """(task, "text" or "audio", estimates by mark), task by task; `watch` sees every scene."""
    for task in plan.tasks:
        marks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for first in range(0, plan.count, BATCH):
            scenes = [
                make_scene(task, plan.split, number, condition=plan.room)
                for number in range(first, min(first + BATCH, plan.count))
            ]
            for scene, reply in zip(scenes, play(scenes), strict=True):
                heard = _hear(reply, ear)
                for by, version in (("text", reply), ("audio", heard)):
                    if version is not None:
                        for name, value in score(scene, version).items():
                            marks[by][name].append(value)
                watch(Played(scene, reply, heard))
        for by, found in marks.items():
            yield task, by, {name: estimate(values) for name, values in found.items()}


def _hear(reply: Reply, ear: Ear | None) -> Reply | None:
    if ear is None or reply.audio is None:
        return None
    return Reply(ear(reply.audio), reply.audio)


def row(
    plan: Plan, provider: str, task: str, by: str, marks: Mapping[str, Estimate], note: str = ""
) -> dict[str, Any]:
    """A row of the document."""
    main = marks["score"]
    return {
        "op": "interactivity",
        "case": f"task={task},split={plan.split},condition={plan.condition},scored={by}",
        "dtype": "fp32",
        "provider": provider,
        "score": _percent(main.mean),
        "low": _percent(main.low),
        "high": _percent(main.high),
        "count": main.scenes,
        "marks": {
            name: [round(value.mean, 4), round(value.low, 4), round(value.high, 4)]
            for name, value in marks.items()
            if name != "score"
        },
        "note": "; ".join(part for part in (note, WORDS) if part),
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)
