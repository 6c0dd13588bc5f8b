"""Trains the interaction model on scenes: text stream, depth head and towers at once.

Seeded and resumable: a step depends on its number, the seed and what was learnt before. Scenes are
made while it trains, by a process of their own.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from microturn.bench.training.balance import Balance
from microturn.bench.training.batch import Voicing, collate
from microturn.bench.training.curriculum import Recipe, Scripts
from microturn.bench.training.lexicon import Lexicon
from microturn.bench.training.objective import Guides, losses
from microturn.bench.training.script import Script
from microturn.model.interaction.learnt import learnt
from microturn.model.interaction.model import InteractionModel

SAVE_SECONDS, LOG_STEPS = 120.0, 10


class Training:
    """A model, its guides and optimiser at some step."""

    def __init__(self, model: InteractionModel, recipe: Recipe, lexicon: Lexicon) -> None:
        """The codec of the model is taken as it is; everything else learns."""
        self.model, self.recipe, self.lexicon = model, recipe, lexicon
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(recipe.seed)
            self.guides = Guides(model.config.trunk.hidden_size, len(lexicon.classes) + 2)
        self.balance = Balance(model)
        self.step = 0
        model.codec.requires_grad_(False)
        learning = [p for p in model.parameters() if p.requires_grad] + [*self.guides.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learning if p.dim() > 1]},
            {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=recipe.rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.decay,
            fused=True,
        )
        self._learning = learning

    def advance(self, made: Sequence[Script], voicing: Voicing) -> dict[str, float]:
        """One step on its scripts; what it measured."""
        stage, rate = self.recipe.at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        batch = collate(made, voicing, self.lexicon.listen_id)
        found = losses(self.model, self.guides, batch, stage.weights, self.lexicon)
        self.optimiser.zero_grad(set_to_none=True)
        found.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._learning, self.recipe.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the gradient is not finite")
        self.optimiser.step()
        crowded = self.balance.update(self.recipe.balance)
        self.step += 1
        measured = {name: float(torch.as_tensor(v).detach()) for name, v in found._asdict().items()}
        return measured | {"norm": float(norm), "crowded": crowded}

    def save(self, path: Path) -> None:
        """Everything that `load` needs, written whole or not at all; the codec is not in it."""
        state = {
            "step": self.step,
            "model": learnt(self.model),
            "guides": self.guides.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Goes on from there. Raises FileNotFoundError."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(self.model.state_dict() | state["model"])
        self.guides.load_state_dict(state["guides"])
        self.optimiser.load_state_dict(state["optimiser"])


def train(
    training: Training,
    folder: Path,
    voicing: Voicing,
    *,
    until: int | None = None,
    workers: int = 1,
    progress: Callable[[int, dict[str, float]], None] = lambda step, line: None,
) -> None:
    """Trains in `folder`: state.pt (every SAVE_SECONDS and at the end; there before: gone on from)
    and log.jsonl. until: a step before the recipe's end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.pt"
    if state.exists():
        training.load(state)
    last = min(until or training.recipe.steps, training.recipe.steps)
    data = Scripts(training.recipe, training.step, last, training.lexicon)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    saved, lines = time.monotonic(), []
    with (folder / "log.jsonl").open("a") as log:
        for step, made in loader:
            measured = training.advance(made, voicing)
            lines.append(measured)
            if (step + 1) % LOG_STEPS == 0:
                stage = training.recipe.at(step)[0].name
                line = {"step": step + 1, "stage": stage, **_means(lines)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                lines = []
            progress(step + 1, measured)
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(state)
                saved = time.monotonic()
    training.save(state)


def _means(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By name, over the lines that have a number; nan where none has."""
    made = {}
    for name in lines[0]:
        values = [line[name] for line in lines if not math.isnan(line[name])]
        made[name] = round(sum(values) / len(values), 5) if values else -1.0
    return made
