"""What a model has learnt apart from its codec, in one file: what training writes and a preset
ships.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from microturn.model.checkpoint import (
    Checkpoint,
    Progress,
    Slot,
    Wanted,
    check_fit,
    held_items,
    stream,
    write_file,
)
from microturn.model.inkling.names import trunk_tensors
from microturn.model.interaction.model import InteractionModel


def learnt(model: InteractionModel) -> dict[str, Tensor]:
    """By name, all tensors but the codec's."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("codec.")}


def write_learnt(model: InteractionModel, path: Path) -> None:
    """As fp16. Raises OSError."""
    write_file(path, held_items(learnt(model), torch.float16))


def read_learnt(
    model: InteractionModel, path: Path, dtype: str = "fp32", progress: Progress | None = None
) -> None:
    """Weights of the trunk rounded as `dtype` stores them. Raises CheckpointError naming tensors
    that do not fit, FileNotFoundError.
    """
    files = Checkpoint(path)
    tensors = learnt(model)
    check_fit(files, {name: Wanted(tuple(tensor.shape)) for name, tensor in tensors.items()})
    stream(files, slots(model, tensors), dtype, progress)


def slots(model: InteractionModel, tensors: dict[str, Tensor]) -> list[Slot]:
    """Where tensors of that model's state are to be read to; only the trunk has weights worth fewer
    bits.
    """
    kinds = {f"trunk.{entry.parameter}": entry.kind for entry in trunk_tensors(model.config.trunk)}
    return [Slot(name, tensor, kinds.get(name, "scalar")) for name, tensor in tensors.items()]
