"""Who answers the scenes: the model itself, the same network in a harness, nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from microturn.bench.interactivity import duplex
from microturn.bench.interactivity.harness import Rules, converse
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.suite import BATCH, LEAK, Play
from microturn.bench.interactivity.tasks import make_scene
from microturn.bench.interactivity.turns import TurnSession, tune

if TYPE_CHECKING:
    from microturn.runtime import Runtime

PROVIDERS = ("microturn", "harness", "silent")
LEAK_DB = -30.0
TUNING_SCENES = 12


@contextmanager
def player(
    name: str, preset: str, checkpoint: Path | None, condition: str
) -> Iterator[tuple[Play, str]]:
    """How PROVIDERS[name] plays scenes, and what to note about it.

    checkpoint: weights, in turn format for the harness; None: those of the preset. Raises
    ValueError on an unknown name, and what loading raises.
    """
    if name == "silent":
        yield (lambda scenes: [Reply(()) for _ in scenes]), "says nothing"
        return
    if name not in PROVIDERS:
        raise ValueError(f"unknown provider {name!r}; known: {', '.join(PROVIDERS)}")
    with _runtime(preset, checkpoint, BATCH if name == "microturn" else 1) as runtime:
        note = "trained weights" if runtime.family.trained else "untrained weights"
        if name == "microturn":
            leak = LEAK_DB if condition == LEAK else None
            yield (lambda scenes: duplex.play(runtime, scenes, leak_db=leak)), note
            return
        rules = Rules()
        if runtime.family.trained:  # noise has no best rules
            questions = [make_scene("latency", "validation", n) for n in range(TUNING_SCENES)]
            rules, right = tune(lambda scene, rules: _converse(runtime, scene, rules), questions)
            note = f"{note}; {rules}, tuned to {100 * right:.0f} % of plain questions"
        yield (lambda scenes: [_converse(runtime, scene, rules) for scene in scenes]), note


def _converse(runtime: Runtime, scene: Scene, rules: Rules) -> Reply:
    with closing(TurnSession(runtime)) as model:
        return converse(scene, model, rules)


def _runtime(preset: str, checkpoint: Path | None, sessions: int) -> Runtime:
    from microturn.model.interaction import load_family
    from microturn.runtime import Runtime, VirtualClock

    family = load_family(None if checkpoint else preset, checkpoint)
    return Runtime(model=family, max_sessions=sessions, clock=VirtualClock(), input_queue_ms=1000)
