"""The harness's rules, chosen on the validation split: it is to be a fair opponent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from microturn.bench.interactivity.harness import Rules
from microturn.bench.interactivity.intervals import Estimate
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.scoring import gather, score
from microturn.bench.interactivity.tasks import make_scene

SCENES = 24
SILENCES_MS = (200, 300, 400, 500, 700)
AGGRESSIVENESS = (1, 2, 3)
FAIR_TAKE_OVER, FAIR_RIGHT = 0.9, 0.8
"""What the harness must reach on plain questions to be a fair opponent."""

Converse = Callable[[Sequence[tuple[Scene, Rules]]], Sequence[Reply]]
"""Each scene under its rules, in order."""


class Tuned(NamedTuple):
    """The chosen rules, and the marks of plain questions under them."""

    rules: Rules
    marks: Mapping[str, Estimate]

    @property
    def fair(self) -> bool:
        """The harness answers, and right."""
        enough = self.marks["take_over"].mean >= FAIR_TAKE_OVER
        return enough and self.marks["score"].mean >= FAIR_RIGHT


def questions(count: int = SCENES) -> list[Scene]:
    """Plain question and answer, from the validation split."""
    return [make_scene("latency", "validation", number) for number in range(count)]


def tune(converse: Converse, scenes: Sequence[Scene]) -> Tuned:
    """The rules under which most questions of `scenes` are answered right, the promptest of equals.
    First the silence that ends a turn is chosen, then the detector's aggressiveness.
    """
    prompt = _best(converse, scenes, [replace(Rules(), silence_ms=ms) for ms in SILENCES_MS])
    others = [replace(prompt.rules, aggressiveness=a) for a in AGGRESSIVENESS]
    return _best(converse, scenes, others)


def _best(converse: Converse, scenes: Sequence[Scene], rules: Sequence[Rules]) -> Tuned:
    """The first of those with the highest score; `rules` go from prompt to patient."""
    replies = converse([(scene, each) for each in rules for scene in scenes])
    tuned = []
    for index, each in enumerate(rules):
        given = replies[index * len(scenes) : (index + 1) * len(scenes)]
        pairs = zip(scenes, given, strict=True)
        tuned.append(Tuned(each, gather(score(scene, reply) for scene, reply in pairs)))
    return max(tuned, key=lambda one: one.marks["score"].mean)
