"""Turn-based use of released weights: memory for one turn, its prompt in chunks, then its reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from microturn.model.checkpoint import CheckpointError, Progress, read_config
from microturn.model.family import Sampling
from microturn.model.inkling.release import Inkling, load_release
from microturn.model.inkling.release_config import NAME, ReleaseConfig, read_release_config
from microturn.model.inkling.turn import CURSOR, TurnSteps, draw, prompt_rows, turn_specs
from microturn.runtime.arenas import Arenas

if TYPE_CHECKING:
    from microturn.model.inkling.turn import Prompt

MAX_ROWS = 128
"""Rows of a prompt in one pass."""


@dataclass
class Reply:
    """ids, the one that ended it included; ended: an end id came, else max_tokens did.

    prefill_ms  from the prompt to the first id; token_ms  of every further one
    """

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    prefill_ms: float = 0.0
    token_ms: list[float] = field(default_factory=list)


def read_turn_config(folder: Path) -> ReleaseConfig:
    """The sizes of released weights. Raises CheckpointError, FileNotFoundError; in words for a
    checkpoint of the interaction family.
    """
    if read_config(folder / NAME).get("family") is not None:
        raise CheckpointError(
            f"{folder} holds weights that listen and speak all the time, not turn by turn; run "
            f"them without --mode turn"
        )
    return read_release_config(folder, max_rows_per_tick=MAX_ROWS)


def load_for_turn(folder: Path, num_rows: int, progress: Progress | None = None) -> Inkling:
    """A release whose global layers see all rows of a turn of `num_rows`, prompt and reply: their
    window never recycles, so a reply depends on everything before it.

    Raises what `load_release` does, MemoryError before anything is read when weights and state do
    not fit, CheckpointError when the model does not reach so far.
    """
    config = read_release_config(folder, global_window=num_rows, max_rows_per_tick=MAX_ROWS).trunk
    if config.global_window < num_rows:
        raise CheckpointError(
            f"{folder} reads and writes {config.global_window} rows, this turn wants {num_rows}; "
            f"give it less, or a smaller --max-tokens"
        )
    return load_release(
        folder,
        global_window=num_rows,
        max_rows_per_tick=MAX_ROWS,
        beside=sum(spec.bytes_per_slot for spec in turn_specs(config)),
        progress=progress,
    )


def write(
    model: Inkling,
    prompt: Prompt,
    *,
    how: Sampling,
    seed: int,
    eos_ids: Collection[int],
    max_tokens: int,
    on_token: Callable[[int], None] = lambda token: None,
) -> Reply:
    """Reads the prompt and writes until an id of eos_ids came, which is the last, or max_tokens.

    Raises ValueError when model.trunk's global window is smaller than prompt and reply,
    FloatingPointError when weights or input make numbers that are not finite.
    """
    config = model.trunk.config
    length = len(prompt.ids)
    if length + max_tokens > config.global_window:
        raise ValueError(
            f"{length} rows and {max_tokens} tokens need a global window of "
            f"{length + max_tokens}, got {config.global_window}"
        )
    reply = Reply()
    with torch.inference_mode():
        arenas = Arenas(turn_specs(config), 1)
        steps = TurnSteps(model, arenas)
        began = time.perf_counter()
        for start in range(0, length, config.max_rows_per_tick):
            stop = min(start + config.max_rows_per_tick, length)
            logits = steps.append(prompt_rows(model, prompt, start, stop))
            arenas.commit([0], {CURSOR: [stop - start]}, [False])
        for step in range(max_tokens):
            token = draw(logits, how, seed, step)
            now = time.perf_counter()
            if step == 0:
                reply.prefill_ms = 1000 * (now - began)
            else:
                reply.token_ms.append(1000 * (now - began))
            reply.ids.append(token)
            on_token(token)
            if token in eos_ids:
                reply.ended = True
                break
            if step + 1 < max_tokens:
                began = time.perf_counter()
                logits = steps.append(steps.embed(token))
                arenas.commit([0], {CURSOR: [1]}, [False])
    return reply
