"""Who answers the scenes: the model itself, the same network in a harness, nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from microturn.bench.interactivity import duplex, harness
from microturn.bench.interactivity.harness import Rules
from microturn.bench.interactivity.lanes import Case, play, sampling
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.tasks import make_scene
from microturn.bench.interactivity.tuning import Tuned, questions, tune

if TYPE_CHECKING:
    from microturn.runtime import Runtime

PROVIDERS = ("microturn", "harness", "silent")
LANES = 16
"""Sessions side by side: one of sixteen costs an eighth of one alone."""

LEAK = "leak"
"""The condition in which the model hears its own voice: clean scenes, the rest is the player's."""
LEAK_DB = -30.0


class Job(NamedTuple):
    """One scene under one condition."""

    task: str
    split: str
    number: int
    condition: str

    def scene(self) -> Scene:
        room = "clean" if self.condition == LEAK else self.condition
        return make_scene(self.task, self.split, self.number, condition=room)


@dataclass(frozen=True)
class Player:
    """One of PROVIDERS and what it takes to play.

    checkpoint   folder of weights, in turn format for the harness; None: those of the preset
    rules        of the harness
    temperature  of the text that is drawn; 0 takes the likeliest
    """

    name: str
    preset: str = "interaction-tiny"
    checkpoint: str | None = None
    rules: Rules = field(default_factory=Rules)
    lanes: int = LANES
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in PROVIDERS:
            raise ValueError(f"unknown provider {self.name!r}; known: {', '.join(PROVIDERS)}")

    def play(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Scene, Reply]]:
        """As they end. Raises what loading the weights raises."""
        if self.name == "silent":
            yield from ((job, job.scene(), Reply(())) for job in jobs)
            return
        with self._runtime() as runtime:
            cases = (self._case(runtime, job) for job in jobs)
            for case, reply in play(runtime, cases, sampling(self.temperature)):
                yield case.key, case.scene, reply

    def tune(self) -> Tuned:
        """The harness's best rules. Raises what loading the weights raises."""
        with self._runtime() as runtime:

            def converse(asked: Sequence[tuple[Scene, Rules]]) -> list[Reply]:
                shape = runtime.family.shape
                cases = (
                    Case(index, scene, harness.live(scene, shape, rules))
                    for index, (scene, rules) in enumerate(asked)
                )
                found = {case.key: reply for case, reply in play(runtime, cases)}
                return [found[index] for index in range(len(asked))]

            return tune(converse, questions())

    def trained(self) -> bool:
        """Whether the weights are. Raises what loading them raises."""
        from microturn.model.interaction import load_family

        return load_family(None if self.checkpoint else self.preset, self.checkpoint).trained

    def _case(self, runtime: Runtime, job: Job) -> Case[Job]:
        scene, shape = job.scene(), runtime.family.shape
        if self.name == "harness":
            return Case(job, scene, harness.live(scene, shape, self.rules))
        leak = LEAK_DB if job.condition == LEAK else None
        return Case(job, scene, duplex.live(scene, shape, leak_db=leak))

    @contextmanager
    def _runtime(self) -> Iterator[Runtime]:
        from microturn.model.interaction import load_family
        from microturn.runtime import Runtime, VirtualClock

        family = load_family(None if self.checkpoint else self.preset, self.checkpoint)
        with Runtime(model=family, max_sessions=self.lanes, clock=VirtualClock()) as runtime:
            yield runtime
