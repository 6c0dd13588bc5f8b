"""A checkpoint of one file, or of shards with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from microturn.model.checkpoint.errors import CheckpointError
from microturn.model.checkpoint.shard import TensorInfo, mapped, read_header

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"


class Checkpoint:
    """Tensors of a safetensors file, or of a folder that holds `model.safetensors` or shards and
    their index. Only headers are read on opening; a Source.

    Raises FileNotFoundError when there is no checkpoint, CheckpointError when its parts do not
    agree, OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)
        self.tensors: Mapping[str, TensorInfo] = (
            _open_folder(path) if path.is_dir() else _open_file(path)
        )

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As a mapping of the file (shard.mapped): slice it on, and only that part is read."""
        return mapped(self.tensors[name], start, stop)


def _open_file(path: Path) -> dict[str, TensorInfo]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return read_header(path)


def _open_folder(folder: Path) -> dict[str, TensorInfo]:
    index, single = folder / INDEX, folder / SINGLE
    if not index.is_file():
        if not single.is_file():
            raise FileNotFoundError(f"{folder} is not a checkpoint: no {SINGLE} and no {INDEX}")
        return read_header(single)
    placed = _read_index(index)
    if single.is_file() and SINGLE not in placed.values():
        raise CheckpointError(
            f"{folder} holds both {SINGLE} and an {INDEX} that does not name it; remove the one "
            f"that is not meant"
        )
    shards: dict[str, dict[str, TensorInfo]] = {}
    for name, shard in placed.items():
        if shard not in shards:
            if not (folder / shard).is_file():
                raise CheckpointError(
                    f"{index} puts {name} in {shard}, which is not in the folder; fetch that file"
                )
            shards[shard] = read_header(folder / shard)
    _compare(index, placed, shards)
    return {name: shards[shard][name] for name, shard in placed.items()}


def _compare(
    index: Path, placed: Mapping[str, str], shards: Mapping[str, Mapping[str, TensorInfo]]
) -> None:
    """Index and shards must tell the same."""
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{index} puts {name} in {shard}, which has no such tensor")
    for shard, tensors in shards.items():
        for name in tensors:
            if name not in placed:
                raise CheckpointError(f"{index} does not know {name}, which {shard} holds")
            if placed[name] != shard:
                raise CheckpointError(
                    f"{index.parent}: {name} is in two shards, {placed[name]} and {shard}"
                )


def _read_index(path: Path) -> dict[str, str]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names if len(set(names)) < len(names) else ():
            if names.count(name) > 1:
                raise CheckpointError(f"{path} names {name} twice")
        return dict(pairs)

    try:
        document = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    placed = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{path} has no weight_map of tensor names to files")
    for name, shard in placed.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{path} puts {name} in {shard!r}; wanted the name of a file in the folder"
            )
    return placed
