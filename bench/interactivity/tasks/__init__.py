"""The tasks: each makes scenes from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.splits import Split
from microturn.bench.interactivity.tasks.answering import idle, latency
from microturn.bench.interactivity.tasks.charades import charades
from microturn.bench.interactivity.tasks.counting import backchannel, interrupt, pause
from microturn.bench.interactivity.tasks.cuespeak import cuespeak
from microturn.bench.interactivity.tasks.proactive import proactive
from microturn.bench.interactivity.tasks.repcount import repcount
from microturn.bench.interactivity.tasks.timespeak import timespeak

SEED = 20_26
"""Of the published scenes. A scene depends on it, its task, its split and its number alone."""

TASKS: dict[str, Callable[[Split, Generator, str, str], Scene]] = {
    "timespeak": timespeak,
    "cuespeak": cuespeak,
    "repcount": repcount,
    "charades": charades,
    "proactive": proactive,
    "interrupt": interrupt,
    "backchannel": backchannel,
    "pause": pause,
    "latency": latency,
    "idle": idle,
}


def make_scene(
    task: str, split: str, number: int, *, condition: str = "clean", seed: int = SEED
) -> Scene:
    """Scene `number` of a split; the same in every process. Raises ValueError on unknown names."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    where = Split(split)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), where.number, number])
    return TASKS[task](where, rng, f"{task}-{split}-{number}", condition)
