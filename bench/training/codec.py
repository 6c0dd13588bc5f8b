"""Trains the codec of `interaction-tiny`: seeded, resumable, sized for one thread of a CPU.

A step depends on its number, the seed and what was learnt before it, on nothing else: a run that
was cut goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microturn.bench.training import batched
from microturn.bench.training.linear_start import start_linear
from microturn.bench.training.losses import distance
from microturn.bench.training.quantiser import Books, quantise
from microturn.bench.training.voice import (
    HEARD_FRAME,
    WORDS,
    at_codec_rate,
    spoken,
    utterance,
)
from microturn.model.interaction.presets import preset
from microturn.model.mimi import Mimi, MimiConfig, load_mimi

SMALLEST = 3e-3
"""Size that a smaller tensor, or one of zeros, counts as."""
CLIP = 5.0
"""Longest gradient of a step."""
SAVE_SECONDS, LOG_STEPS = 120.0, 10


@dataclass(frozen=True)
class Recipe:
    """batch recordings of `frames` frames a step; the rate (a share of each tensor's size) rises
    over `warm` steps, then falls along a cosine to a twentieth at step `steps`.

    joint_from     step from which encoder and books learn as well: before it the codes stand still,
                   and a step is half the work
    canonical      share of training words in the voice itself (`voice.utterance`)
    average        decay of the parameters' running mean, which is what is evaluated and shipped
    """

    seed: int = 0
    steps: int = 1000
    batch: int = 4
    frames: int = 20
    rate: float = 3e-3
    warm: int = 20
    joint_from: int = 1000
    canonical: float = 1.0
    commitment: float = 0.25
    average: float = 0.99

    def rate_at(self, step: int) -> float:
        fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warm) * (0.05 + 0.95 * fall)


def vocabulary(config: MimiConfig) -> Tensor:
    """[words, samples]: each word as the model says it, a frame of silence before it."""
    said = [at_codec_rate(np.pad(spoken(word), (HEARD_FRAME, 0))) for word in WORDS]
    frames = 1 + max(len(audio) for audio in said) // config.frame_size
    rows = np.zeros((len(WORDS), frames * config.frame_size), np.float32)
    for row, audio in zip(rows, said, strict=True):
        row[: len(audio)] = audio
    return torch.from_numpy(rows)


def by_row(heard: Tensor, config: MimiConfig) -> Tensor:
    """Which frame of heard [words, samples] each row of a book begins as: the loudest in their
    order, silence in the last row; then those that are left.

    Where the books hold every frame, a code is the number of a frame of the voice, whatever the
    sizes of the layers: a codec can be replaced under a model that has learnt its codes.
    """
    loudness = heard.view(-1, config.frame_size).square().sum(1)
    falling = loudness.argsort(descending=True, stable=True)
    loud, rest = falling.tensor_split([config.codebook_size - 1])
    return torch.cat([loud.sort().values, rest.flip(0)])


def recordings(recipe: Recipe, step: int, config: MimiConfig) -> Tensor:
    """[batch, frames * frame_size]: what step `step` learns from, cut off in mid-word."""
    rng = np.random.default_rng((recipe.seed, step))
    rows = np.zeros((recipe.batch, recipe.frames * config.frame_size), np.float32)
    for row in rows:
        audio = utterance(rng, 3, canonical=recipe.canonical, gaps=(0.05, 0.3)).audio
        late = row[int(rng.integers(4)) * config.frame_size :]
        late[: len(audio)] = audio[: len(late)]
    return torch.from_numpy(rows)


class Training:
    """A codec, its optimiser and books at some step."""

    def __init__(self, recipe: Recipe, config: MimiConfig) -> None:
        """Everything of the right shape, nothing learnt: `fresh`, `begin` and `load` fill it."""
        self.recipe, self.config = recipe, config
        self.step = 0
        self.codec = Mimi(config)
        self.codec.reset_parameters(torch.Generator().manual_seed(recipe.seed))
        self.books = Books(self.codec)
        tables = self.codec.decoder.codebooks.tables.requires_grad_(False)
        self._trained = [p for p in self.codec.parameters() if p is not tables]
        self._set_out()

    def _set_out(self) -> None:
        """A fresh mean and optimiser. A step moves a value by a share of its tensor's size: the
        linear codec's lie far apart, and one rate for all would blur it.
        """
        self.mean = self._copies()
        groups = [
            {"params": [p], "size": max(SMALLEST, float(p.detach().square().mean().sqrt()))}
            for p in self._trained
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.8, 0.99), weight_decay=0.0)

    @classmethod
    def fresh(cls, recipe: Recipe, config: MimiConfig) -> Training:
        """At step 0: a linear codec (`linear_start`), its books made of what it gives."""
        training = cls(recipe, config)
        heard = vocabulary(config)
        start_linear(training.codec, heard)
        with torch.no_grad():
            latents = batched.encode(training.codec.encoder, heard).flatten(0, 1)
        latents = latents[by_row(heard, config)]
        generator = torch.Generator().manual_seed(recipe.seed)
        training.books.begin(training.codec, latents, generator)
        training._set_out()
        return training

    @classmethod
    def begin(cls, weights: Path, recipe: Recipe) -> Training:
        """At step 0 from the weights of `interaction-tiny`'s codec. Raises as `load_mimi` does."""
        training = cls(recipe, preset("interaction-tiny").codec)
        training.codec.load_state_dict(load_mimi(weights, config=training.config).state_dict())
        training.books = Books(training.codec)
        training._set_out()
        return training

    def advance(self) -> dict[str, float]:
        """One step; what it measured."""
        recipe, step = self.recipe, self.step
        audio = recordings(recipe, step, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(step) * group["size"]
        joint = step >= recipe.joint_from
        self.codec.encoder.requires_grad_(joint)
        latents = batched.encode(self.codec.encoder, audio)
        quantised = quantise(self.codec, latents.flatten(0, 1))
        decoded = batched.decode(self.codec.decoder, quantised.latents.view_as(latents))
        far = distance(decoded, audio, self.config.sample_rate)
        loss = far.total + recipe.commitment * quantised.commitment if joint else far.total
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._trained, CLIP)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient is not finite; lower the rate")
        self.optimiser.step()
        if joint:
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            self.books.update(quantised.codes, quantised.residuals, generator)
        self.step += 1
        self._average()
        return {
            **{name: float(value.detach()) for name, value in vars(far).items()},
            "commitment": float(quantised.commitment.detach()),
            "used": fmean(len(book.unique()) for book in quantised.codes.T),
            "norm": float(norm),
        }

    def _copies(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.codec.named_parameters()}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.average, self.step / (self.step + 10))
        for name, parameter in self.codec.named_parameters():
            self.mean[name].lerp_(parameter, 1 - decay)

    def averaged(self) -> Mimi:
        """A codec of the parameters' running means."""
        codec = Mimi(self.config)
        codec.load_state_dict(self.mean)
        return codec.requires_grad_(False).eval()

    def save(self, path: Path) -> None:
        """Everything that `load` needs, written whole or not at all."""
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "codec": self.codec.state_dict(),
            "mean": self.mean,
            "books": self.books.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path, recipe: Recipe) -> Training:
        """Goes on from `path` by `recipe`, which may ask for more steps than the run that wrote it.

        Raises FileNotFoundError.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        training = cls(recipe, MimiConfig(**state["config"]))
        training.step = state["step"]
        training.codec.load_state_dict(state["codec"])
        training.mean = state["mean"]
        training.books.load_state_dict(state["books"])
        training.optimiser.load_state_dict(state["optimiser"])
        return training


def train(
    folder: Path,
    recipe: Recipe,
    config: MimiConfig,
    *,
    begin: Path | None = None,
    progress: Callable[[int, dict[str, float]], None] = lambda step, line: None,
) -> Training:
    """Trains up to recipe.steps in `folder`: state.pt (written every SAVE_SECONDS and at the end;
    there before: gone on from), log.jsonl (a line of means every LOG_STEPS steps).

    begin: weights to start from where there is no state.pt. progress is called with every step, and
    with a line of the log or {}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.pt"
    if path.exists():
        training = Training.load(path, recipe)
    elif begin is not None:
        training = Training.begin(begin, recipe)
    else:
        training = Training.fresh(recipe, config)
    saved = began = time.monotonic()
    cpu = time.process_time()
    seen: list[dict[str, float]] = []
    with (folder / "log.jsonl").open("a") as lines:
        while training.step < recipe.steps:
            seen.append(training.advance())
            line: dict[str, float] = {}
            if training.step % LOG_STEPS == 0:
                line = {
                    "step": training.step,
                    "seconds": round(time.monotonic() - began, 1),
                    "cpu_seconds": round(time.process_time() - cpu, 1),
                    **{key: round(fmean(one[key] for one in seen), 4) for key in seen[-1]},
                }
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                seen = []
            progress(training.step, line)
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save(path)
                saved = time.monotonic()
    training.save(path)
    return training
