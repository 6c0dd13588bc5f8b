"""Tensors of a source into parameters, a slice at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microturn.model.checkpoint.errors import CheckpointError
from microturn.model.checkpoint.quantization import Kind, round_weight
from microturn.model.checkpoint.shard import TensorInfo
from microturn.model.checkpoint.source import Source

SLICE_BYTES = 32 << 20
"""Of the file in one slice: what loading holds beside the model is a few of these."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes of all, after every slice."""


@dataclass(frozen=True)
class Slot:
    """Tensor `name` of a source goes to `target`, of as many rows and values."""

    name: str
    target: Tensor
    kind: Kind = "plain"


def stream(
    source: Source, slots: Iterable[Slot], dtype: str = "fp32", progress: Progress | None = None
) -> None:
    """Copies each tensor to its place, cast to the dtype of the target and rounded as weights
    stored in `dtype` are (round_weight). Shapes must fit: check_fit goes before.

    Raises CheckpointError naming file and tensor, also when its values are not finite; OSError.
    """
    slots = list(slots)
    total, done = sum(source.tensors[slot.name].nbytes for slot in slots), 0
    for slot in slots:
        info = source.tensors[slot.name]
        for start, stop in row_slices(info.shape, info.dtype.itemsize):
            part = slot.target[start:stop] if info.shape else slot.target
            with torch.no_grad():
                part.copy_(source.rows(slot.name, start, stop).reshape(part.shape))
                _check_finite(part, info)
                round_weight(part, dtype, slot.kind)
            done += info.nbytes * (stop - start) // (info.shape[0] if info.shape else 1)
            if progress is not None:
                progress(done, total)


def _check_finite(part: Tensor, info: TensorInfo) -> None:
    """A sum shows infinities and NaN in one pass; one that overflows is looked at again."""
    if not bool(part.sum().isfinite()) and not bool(part.isfinite().all()):
        raise CheckpointError(f"{info.where} holds infinities or NaN; fetch the file again")


def row_slices(shape: tuple[int, ...], itemsize: int) -> list[tuple[int, int]]:
    """Runs of whole rows of about SLICE_BYTES; one for a tensor without rows."""
    if not shape:
        return [(0, 1)]
    rows = max(1, SLICE_BYTES // max(1, prod(shape[1:]) * itemsize))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def read_config(path: Path) -> dict[str, Any]:
    """The object of a config.json. Raises FileNotFoundError, CheckpointError, OSError."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} is not a checkpoint: it has no {path.name}; a checkpoint folder holds "
            f"config.json, model.safetensors (or its shards and their index) and, for text, "
            f"tokenizer.json"
        )
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object, but {config!r:.80}")
    return config
