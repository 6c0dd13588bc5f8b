"""Writing: one file, or shards with an index, a slice at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from microturn.model.checkpoint.errors import CheckpointError
from microturn.model.checkpoint.reader import INDEX, SINGLE
from microturn.model.checkpoint.shard import CODES, LENGTH_BYTES
from microturn.model.checkpoint.streaming import Progress, row_slices

SHARD_BYTES = 5_000_000_000
"""A tensor larger than this has a shard of its own."""

ALIGNMENT = 8


@dataclass(frozen=True)
class Item:
    """A tensor to write. rows(start, stop): those rows, of any dtype; all of a tensor without
    rows.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def held_items(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> list[Item]:
    """Items of tensors in memory, written as `dtype`, or as they are."""
    return [
        Item(name, dtype or tensor.dtype, tuple(tensor.shape), _rows_of(tensor))
        for name, tensor in tensors.items()
    ]


def write_checkpoint(
    folder: Path,
    items: Sequence[Item],
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Writes `model.safetensors`, or, past shard_bytes, `model-00001-of-0000N.safetensors` ... and
    an index, in the order given; the folder is made if need be.

    Files appear under their names only once they are whole, the index last. Raises
    CheckpointError when the folder holds files of another checkpoint, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(items, shard_bytes)
    names = [
        SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        for i in range(len(shards))
    ]
    written = {*names, INDEX} if len(shards) > 1 else {SINGLE}
    for old in sorted({p.name for p in folder.glob("model*.safetensors*")} - written):
        raise CheckpointError(
            f"{folder} holds {old} of another checkpoint; remove it, or write to another folder"
        )
    total, before = sum(item.nbytes for item in items), 0
    for name, shard in zip(names, shards, strict=True):
        told = None if progress is None else _shifted(progress, before, total)
        write_file(folder / name, shard, progress=told)
        before += sum(item.nbytes for item in shard)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {
                item.name: name for name, shard in zip(names, shards, strict=True) for item in shard
            },
        }
        partial = folder / f".{INDEX}.partial"
        partial.write_text(json.dumps(index, indent=1) + "\n")
        partial.rename(folder / INDEX)


def write_file(path: Path, items: Sequence[Item], *, progress: Progress | None = None) -> None:
    """One safetensors file. Raises ValueError on a name given twice or rows of another shape,
    OSError.
    """
    # Wide values first: then all are aligned.
    items = sorted(items, key=lambda item: -item.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in items:
        if item.name in header:
            raise ValueError(f"{path}: {item.name} is to be written twice")
        header[item.name] = {
            "dtype": CODES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [end, end + item.nbytes],
        }
        end += item.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    partial, done = path.with_name(f".{path.name}.partial"), 0
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for item in items:
            for start, stop in row_slices(item.shape, item.dtype.itemsize):
                values = item.rows(start, stop).detach().to(item.dtype).contiguous()
                wanted = (stop - start, *item.shape[1:]) if item.shape else ()
                if tuple(values.shape) != wanted:
                    raise ValueError(
                        f"{path}: {item.name} gave rows of {list(values.shape)}, "
                        f"wanted {list(wanted)}"
                    )
                if values.numel():
                    flat = values.reshape(-1).view(torch.uint8)
                    file.write(flat.numpy().data)
                    done += flat.numel()
                if progress is not None:
                    progress(done, end)
    partial.rename(path)


def _shards(items: Sequence[Item], shard_bytes: int) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    filled = 0
    for item in items:
        if shards[-1] and filled + item.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.nbytes
    return shards


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _rows_of(tensor: Tensor) -> Callable[[int, int], Tensor]:
    return lambda start, stop: tensor[start:stop] if tensor.dim() else tensor
