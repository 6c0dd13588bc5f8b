"""A score while training: scenes played without a voice, scored by the text stream."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from microturn.bench.interactivity import duplex, harness, lanes
from microturn.bench.interactivity.intervals import Estimate
from microturn.bench.interactivity.lanes import Life
from microturn.bench.interactivity.reply import Reply
from microturn.bench.interactivity.scene import Scene
from microturn.bench.interactivity.scoring import gather, score
from microturn.bench.interactivity.tasks import SEED, make_scene
from microturn.kernels.arena import ArenaSpec
from microturn.model.family import TickShape
from microturn.model.interaction.model import InteractionModel
from microturn.model.interaction.step import InteractionFamily
from microturn.model.interaction.tokenizer import FileTokenizer
from microturn.runtime import Runtime, VirtualClock

LANES = 32
"""Sessions side by side, unless there are fewer scenes."""


def evaluate_text(
    model: InteractionModel,
    tokenizer: FileTokenizer,
    task: str,
    split: str = "validation",
    n: int = 32,
    seed: int = SEED,
    *,
    condition: str = "clean",
    rules: harness.Rules | None = None,
    temperature: float = 0.0,
) -> Mapping[str, Estimate]:
    """Marks of the first n scenes of a task (see scoring.py), `score` among them.

    rules        of the harness, for a model in turn format; None: it hears and speaks all the time
    temperature  of the text that is drawn; 0 takes the likeliest
    The model is left as it was: its weights are used in place, its mode is put back.
    """
    training = model.training
    family = InteractionFamily(muted(model), trained=True, tokenizer=tokenizer)
    try:
        live = _way(family.shape, rules)
        scenes = (make_scene(task, split, k, condition=condition, seed=seed) for k in range(n))
        with Runtime(
            model=family,
            max_sessions=min(LANES, n),
            clock=VirtualClock(),
            threads=torch.get_num_threads(),
        ) as runtime:
            cases = (lanes.Case(None, scene, live(scene)) for scene in scenes)
            played = lanes.play(runtime, cases, lanes.sampling(temperature))
            marks = [score(case.scene, Reply(reply.words)) for case, reply in played]
    finally:
        model.train(training)
    return gather(marks)


def _way(shape: TickShape, rules: harness.Rules | None) -> Callable[[Scene], Life]:
    if rules is None:
        return lambda scene: duplex.live(scene, shape)
    return lambda scene: harness.live(scene, shape, rules)


def muted(model: InteractionModel) -> InteractionModel:
    """The same weights with a codec that makes silence of everything: a third less work."""
    quiet = copy.copy(model)
    quiet._modules = dict(model._modules)
    quiet.codec = Mute(model.config.codec.frame_size)  # type: ignore[assignment]
    return quiet


class Mute(nn.Module):
    """Stands in for a MimiDecoder."""

    def __init__(self, frame_size: int) -> None:
        super().__init__()
        self._frame_size = frame_size

    def arena_specs(self, prefix: str, max_frames: int = 1) -> Sequence[ArenaSpec]:
        return ()

    def bind(self, arenas: object, prefix: str) -> None:
        return None

    def forward(self, codes: Tensor, state: None, rows: object) -> Tensor:
        return torch.zeros(len(codes) * self._frame_size)
