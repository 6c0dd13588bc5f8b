"""What the interaction model learns from, step by step: stages of tasks, scenes from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch.utils.data import IterableDataset

from microturn.bench.interactivity.scene import CONDITIONS
from microturn.bench.interactivity.splits import Split
from microturn.bench.interactivity.tasks import TASKS
from microturn.bench.training.drill import drill
from microturn.bench.training.lexicon import Lexicon
from microturn.bench.training.medley import medley, show
from microturn.bench.training.objective import Weights
from microturn.bench.training.script import Script, script

MAKERS = {**TASKS, "drill": drill, "medley": medley, "show": show}
SEEING = ("repcount", "charades", "proactive", "show")

LEARNING, FINISHING = Weights(), Weights(listen=0.25, said=1.0)
"""A word weighs thirty times as much as silence while it is learnt; at the end four times, since
what weighs more is also said too often.
"""


@dataclass(frozen=True)
class Stage:
    """`steps` steps on a mixture of tasks (shares by name), its learning rate warmed up anew."""

    name: str
    steps: int
    mixture: Mapping[str, float]
    weights: Weights = LEARNING


STAGES = (
    Stage("hearing", 700, {"drill": 0.85, "latency": 0.15}),
    Stage(
        "talking",
        700,
        {"drill": 0.2, "timespeak": 0.28, "cuespeak": 0.22, "latency": 0.08, "interrupt": 0.06}
        | {"pause": 0.06, "backchannel": 0.06, "idle": 0.04},
    ),
    Stage(
        "joint",
        600,
        {"drill": 0.1, "timespeak": 0.14, "cuespeak": 0.14, "repcount": 0.22, "charades": 0.08}
        | {"proactive": 0.07, "interrupt": 0.05, "backchannel": 0.05, "pause": 0.03}
        | {"latency": 0.03, "idle": 0.02, "medley": 0.04, "show": 0.03},
        FINISHING,
    ),
)
"""training-notes: hearing, then what is heard and said, then all with vision; hearing is kept in.
"""


@dataclass(frozen=True)
class Recipe:
    """batch scenes a step; learning rate up over `warm` steps of each stage, then down along a
    cosine to a tenth at the stage's end. balance: how fast selection biases even out the experts.
    """

    seed: int = 0
    batch: int = 4
    rate: float = 1.5e-3
    warm: int = 100
    clip: float = 1.0
    decay: float = 0.05
    balance: float = 1e-2
    stages: tuple[Stage, ...] = STAGES

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, float]:
        """The stage of a step, and its learning rate."""
        for stage in self.stages:
            if step < stage.steps:
                fall = 0.1 + 0.45 * (1 + math.cos(math.pi * step / stage.steps))
                return stage, self.rate * min(1.0, (step + 1) / self.warm) * fall
            step -= stage.steps
        raise IndexError(f"the recipe has {self.steps} steps")


def scripts(recipe: Recipe, step: int, lexicon: Lexicon) -> list[Script]:
    """The scenes of one step: all seeing or none, in rooms clean or not."""
    stage, _ = recipe.at(step)
    rng = np.random.default_rng((recipe.seed, step))
    tasks = list(stage.mixture)
    shares = np.array([stage.mixture[task] for task in tasks])
    first = str(rng.choice(tasks, p=shares / shares.sum()))
    alike = [task for task in tasks if (task in SEEING) == (first in SEEING)]
    shares = np.array([stage.mixture[task] for task in alike])
    split = Split("train")
    made = []
    for number in range(recipe.batch):
        task = first if not number else str(rng.choice(alike, p=shares / shares.sum()))
        condition = str(rng.choice(CONDITIONS, p=(0.5, 0.25, 0.25)))
        own = np.random.default_rng((recipe.seed, step, number, zlib.crc32(task.encode())))
        made.append(script(MAKERS[task](split, own, task, condition), lexicon))
    return made


class Scripts(IterableDataset[tuple[int, list[Script]]]):
    """(step, its scripts) from a step on."""

    def __init__(self, recipe: Recipe, first: int, last: int, lexicon: Lexicon) -> None:
        self._recipe, self._steps, self._lexicon = recipe, range(first, last), lexicon

    def __iter__(self) -> Iterator[tuple[int, list[Script]]]:
        for step in self._steps:
            yield step, scripts(self._recipe, step, self._lexicon)
