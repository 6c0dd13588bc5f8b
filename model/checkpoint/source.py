"""Where tensors come from: files, or memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from microturn.model.checkpoint.shard import TensorInfo


class Source(Protocol):
    """Tensors by name, given out in rows."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def where(self) -> str:
        """For people: the file or folder."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start : stop of a tensor; a tensor without rows is given whole."""
        ...


class Held:
    """Tensors that are in memory already."""

    where = "the checkpoint"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._values = tensors
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in tensors.items()
        }

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor = self._values[name]
        return tensor[start:stop] if tensor.dim() else tensor


def as_source(tensors: Source | Mapping[str, Tensor]) -> Source:
    """A mapping becomes a Source; a Source stays what it is."""
    return Held(tensors) if isinstance(tensors, Mapping) else tensors
