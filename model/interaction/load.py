"""From a preset's name or a checkpoint folder to a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, overload

import torch

from microturn.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    Progress,
    Wanted,
    check_fit,
    held_items,
    read_config,
    stream,
    write_checkpoint,
)
from microturn.model.checkpoint.quantization import check_weight_dtype
from microturn.model.inkling.release import Inkling, load_release
from microturn.model.inkling.release_config import MODEL_TYPE
from microturn.model.interaction.config import ROWS_PER_COMMIT, InteractionConfig
from microturn.model.interaction.learnt import read_learnt, slots
from microturn.model.interaction.model import InteractionModel
from microturn.model.interaction.presets import TRAINED, TRAINED_CODECS
from microturn.model.interaction.presets import preset as preset_config
from microturn.model.interaction.step import InteractionFamily
from microturn.model.interaction.tokenizer import FileTokenizer
from microturn.model.memory import free_bytes
from microturn.model.mimi import load_mimi

FORMAT = 1
FAMILY = "interaction"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"


def num_parameters(config: InteractionConfig) -> int:
    """Stored values of a model of these sizes; nothing is allocated."""
    with torch.device("meta"):
        return sum(t.numel() for t in InteractionModel(config).state_dict().values())


class NoAudioHead(ValueError):
    """Weights that can hear and write, where the interaction mode has to speak as well."""


@overload
def load(
    preset: str,
    checkpoint: None = None,
    *,
    tick_ms: int = ...,
    seed: int = ...,
    trained: bool = ...,
    dtype: str = ...,
    window: int | None = ...,
    num_sink_tokens: int | None = ...,
    progress: Progress | None = ...,
) -> InteractionFamily: ...
@overload
def load(
    preset: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    tick_ms: int = ...,
    seed: int = ...,
    trained: bool = ...,
    dtype: str = ...,
    window: int | None = ...,
    num_sink_tokens: int | None = ...,
    progress: Progress | None = ...,
) -> InteractionFamily | Inkling: ...
def load(
    preset: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    tick_ms: int = 100,
    seed: int = 0,
    trained: bool = True,
    dtype: str = "fp32",
    window: int | None = None,
    num_sink_tokens: int | None = None,
    progress: Progress | None = None,
) -> InteractionFamily | Inkling:
    """A model on the CPU, computing in fp32: a preset with the weights it ships (`TRAINED`), else
    with seeded random ones, and with its trained codec if it has one (`TRAINED_CODECS`); or what a
    checkpoint folder holds.

    Exactly one of preset and checkpoint. A folder that `save` wrote gives a family the runtime can
    step; a released Inkling folder gives an Inkling, its trunk and audio tower: it has no depth
    head and no codec.
    trained   False: seeded random weights even where the preset ships its own
    dtype     the values of weights that are read are those that storage as fp32, bf16 or fp8 has
              (kernels still compute in fp32; our own files round the trunk only)
    window, num_sink_tokens  of an InteractionFamily: see InteractionConfig.with_window
    progress  called with the bytes read and the bytes of all, after every slice

    Raises CheckpointError (a ValueError) naming file and tensor, ValueError on an unknown preset or
    a tick that does not fit, FileNotFoundError, MemoryError when it cannot fit.
    """
    if (preset is None) == (checkpoint is None):
        raise ValueError("give exactly one of preset and checkpoint")
    check_weight_dtype(dtype)
    if checkpoint is not None:
        folder = Path(checkpoint)
        header = read_config(folder / CONFIG)
        if header.get("family") == FAMILY:
            seen = (window, num_sink_tokens)
            return _load_own(folder, header, tick_ms, dtype, seen, progress)
        if str(header.get("model_type")).startswith("inkling"):
            return load_release(
                folder, dtype=dtype, max_rows_per_tick=ROWS_PER_COMMIT, progress=progress
            )
        raise CheckpointError(
            f"{folder / CONFIG}: family {header.get('family')!r}, model_type "
            f"{header.get('model_type')!r} cannot be read; this version reads checkpoints of the "
            f"family {FAMILY!r} and released Inkling weights (model_type {MODEL_TYPE!r})"
        )
    assert preset is not None
    config = preset_config(preset).with_window(window, num_sink_tokens)
    config.tick_shape(tick_ms)
    _check_memory(config)
    model = InteractionModel(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    if preset in TRAINED_CODECS:
        mimi = load_mimi(TRAINED_CODECS[preset], config=config.codec)
        model.codec.load_state_dict(mimi.decoder.state_dict())
    ships = trained and preset in TRAINED
    if ships:
        read_learnt(model, TRAINED[preset], dtype, progress)
    tokenizer = _packaged_tokenizer(config)
    return InteractionFamily(model, tick_ms=tick_ms, trained=ships, tokenizer=tokenizer)


def load_family(
    preset: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    tick_ms: int = 100,
    seed: int = 0,
    trained: bool = True,
    dtype: str = "fp32",
    window: int | None = None,
    num_sink_tokens: int | None = None,
    progress: Progress | None = None,
) -> InteractionFamily:
    """`load` for the interaction mode. Raises NoAudioHead on released weights, unread."""
    if checkpoint is not None and preset is None:
        folder = Path(checkpoint)
        if str(read_config(folder / CONFIG).get("model_type")) == MODEL_TYPE:
            raise NoAudioHead(
                f"{folder} holds Inkling weights, which hear, read and write text but have no "
                f"audio head: no depth head and no codec to speak with, and no ids to listen or "
                f"delegate by, so the interaction mode cannot run them; use them turn by turn "
                f"(microturn run --mode turn), or take a checkpoint of the family {FAMILY!r}"
            )
    loaded = load(
        preset,
        checkpoint,
        tick_ms=tick_ms,
        seed=seed,
        trained=trained,
        dtype=dtype,
        window=window,
        num_sink_tokens=num_sink_tokens,
        progress=progress,
    )
    assert isinstance(loaded, InteractionFamily)
    return loaded


def save(family: InteractionFamily, folder: str | os.PathLike[str]) -> None:
    """Writes config.json, model.safetensors (fp16; shards past 5 GB) and tokenizer.json; the folder
    is made if need be. Raises CheckpointError when it holds another checkpoint's weights.
    """
    path = Path(folder)
    header = {
        "format": FORMAT,
        "family": FAMILY,
        "trained": family.trained,
        "model": family.config.to_dict(),
    }
    write_checkpoint(path, held_items(family.model.state_dict(), torch.float16))
    (path / CONFIG).write_text(json.dumps(header, indent=1) + "\n")
    if family.tokenizer is not None:
        family.tokenizer.save(path / TOKENIZER)


def _load_own(
    folder: Path,
    header: dict[str, Any],
    tick_ms: int,
    dtype: str,
    seen: tuple[int | None, int | None],
    progress: Progress | None,
) -> InteractionFamily:
    path = folder / CONFIG
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: family {FAMILY!r} format {header.get('format')!r} cannot be read; this "
            f"version reads format {FORMAT}"
        )
    if not isinstance(header.get("model"), dict):
        raise CheckpointError(f"{path} has no sizes under model")
    try:
        config = InteractionConfig.from_dict(header["model"]).with_window(*seen)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    config.tick_shape(tick_ms)
    files = Checkpoint(folder)
    with torch.device("meta"):
        sizes = InteractionModel(config).state_dict()
    check_fit(files, {name: Wanted(tuple(t.shape)) for name, t in sizes.items()})
    _check_memory(config)
    model = InteractionModel(config)
    stream(files, slots(model, model.state_dict()), dtype, progress)
    tokenizer = folder / TOKENIZER
    return InteractionFamily(
        model,
        tick_ms=tick_ms,
        trained=bool(header.get("trained")),
        tokenizer=FileTokenizer(tokenizer) if tokenizer.is_file() else None,
    )


def _packaged_tokenizer(config: InteractionConfig) -> FileTokenizer | None:
    if config.tokenizer is None:
        return None
    return FileTokenizer(Path(__file__).parent / config.tokenizer)


def _check_memory(config: InteractionConfig) -> None:
    need = 4 * num_parameters(config)
    have = free_bytes()
    if need > have:
        raise MemoryError(
            f"{config.name} needs {need / 1e9:,.1f} GB of memory in fp32, {have / 1e9:,.1f} GB are "
            f"free; take a smaller preset"
        )
