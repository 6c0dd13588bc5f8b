"""`microturn logits`: what a released backbone makes of token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from microturn.runtime.cli.errors import UsageError
from microturn.runtime.cli.released import load_trunk, written

if TYPE_CHECKING:
    import torch

    from microturn.model.inkling.trunk import Trunk

BLOCK = 64
"""Rows whose logits are held at a time: a vocabulary is wide."""


def write_logits(
    checkpoint: Path, ids: Path, out: Path, *, chunk: int | None, dtype: str = "fp32"
) -> tuple[int, int]:
    """Writes the logits of every id in a JSON list, [T, vocabulary] fp32; returns that shape.

    chunk None: one whole sequence without state; else a stream in pieces of `chunk` rows. dtype:
    how the weights are stored; what is computed with them is fp32. Raises
    UsageError on ids or a checkpoint that do not fit.
    """
    import torch

    numbers = read_ids(ids)
    trunk = load_trunk(
        checkpoint, rows=len(numbers), chunk=min(chunk or 1, len(numbers)), dtype=dtype
    )
    vocabulary = trunk.config.vocab_size
    if not 0 <= min(numbers) <= max(numbers) < vocabulary:
        raise UsageError(
            f"{ids}: ids must be 0 to {vocabulary - 1} (the checkpoint's vocabulary), got "
            f"{min(numbers)} to {max(numbers)}"
        )
    shape = (len(numbers), trunk.config.unpadded_vocab_size)

    def write(path: Path) -> None:
        array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            path, mode="w+", dtype=np.float32, shape=shape
        )
        with torch.inference_mode():
            hidden = _hidden(trunk, torch.tensor(numbers), chunk)
            for start in range(0, len(numbers), BLOCK):
                part = trunk.logits(hidden[start : start + BLOCK])
                array[start : start + BLOCK] = part.numpy()
        array.flush()

    written(out, write)
    return shape


def read_ids(path: Path) -> list[int]:
    """A JSON list of token ids. Raises UsageError on anything else."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give a JSON list of token ids") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; give a list of token ids") from error
    if not isinstance(found, list) or not found or not all(type(i) is int for i in found):
        raise UsageError(f"{path} must hold a JSON list of token ids, such as [1, 5, 2]")
    return found


def _hidden(trunk: Trunk, ids: torch.Tensor, chunk: int | None) -> torch.Tensor:
    """ids [T] -> [T, H], normed."""
    import torch

    from microturn.kernels.rows import RowBatch
    from microturn.runtime.arenas import Arenas

    if chunk is None:
        rows = RowBatch.build([0], [len(ids)], [0])
        return trunk(trunk.embed(ids), None, rows)  # type: ignore[no-any-return]
    state = trunk.bind(Arenas(trunk.arena_specs("trunk"), 1), "trunk")
    parts = []
    for start in range(0, len(ids), chunk):
        piece = ids[start : start + chunk]
        rows = RowBatch.build([0], [len(piece)], [start])
        parts.append(trunk(trunk.embed(piece), state, rows))
    return torch.cat(parts)
