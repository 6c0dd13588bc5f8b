"""Tensors between strips of NaN, to show that a kernel stays inside them.

A read past the end brings NaN into a result, a write past the end changes a strip. For tensors on a
CPU, that is for kernels in Triton's interpreter, whose pointers are as raw as a GPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from microturn.kernels.tree import map_tensors

STRIP = 512
"""Values before and after; a multiple of every alignment that kernels count on."""

STRANGER = 3
"""What integers read there: small enough that an address made from it stays near."""


class Redzones:
    """The strips of one test."""

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []

    def place(self, tensor: Tensor) -> Tensor:
        """A contiguous copy between strips."""
        buffer = _strips(tensor.numel() + 2 * STRIP, tensor.dtype)
        inside = buffer[STRIP : STRIP + tensor.numel()].view(tensor.shape)
        inside.copy_(tensor)
        before = _bytes(buffer).clone()
        self._buffers.append((buffer, before, tuple(tensor.shape)))
        return inside

    def check(self) -> None:
        """Raises AssertionError naming the shape of a tensor that was written around."""
        for buffer, before, shape in self._buffers:
            edge = STRIP * buffer.element_size()
            now = _bytes(buffer)
            for name, part in (("before", slice(0, edge)), ("behind", slice(-edge, None))):
                if not torch.equal(now[part], before[part]):
                    raise AssertionError(f"a kernel wrote {name} a tensor {list(shape)}")


def _strips(size: int, dtype: torch.dtype) -> Tensor:
    if dtype.itemsize == 1:
        return torch.full((size,), 0x7F, dtype=torch.uint8).view(dtype)  # NaN in e4m3
    filler = float("nan") if dtype.is_floating_point else STRANGER
    return torch.full((size,), filler, dtype=dtype)


def _bytes(buffer: Tensor) -> Tensor:
    return buffer.view(torch.uint8)


@contextmanager
def redzones() -> Iterator[Redzones]:
    """Inside, what torch.empty, torch.empty_like and Tensor.new_empty give on a CPU stands between
    strips and holds what strips hold; `place` does it for a test's own tensors. Checked at the end.
    """
    zones = Redzones()
    originals = torch.empty, torch.empty_like, Tensor.new_empty

    def guard(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu" or tensor.numel() == 0:
            return tensor
        return zones.place(_strips(tensor.numel(), tensor.dtype).view(tensor.shape))

    def empty(*args: Any, **kwargs: Any) -> Tensor:
        return guard(originals[0](*args, **kwargs))

    def empty_like(*args: Any, **kwargs: Any) -> Tensor:
        return guard(originals[1](*args, **kwargs))

    def new_empty(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return guard(originals[2](self, *args, **kwargs))

    torch.empty, torch.empty_like = empty, empty_like
    Tensor.new_empty = new_empty  # type: ignore[assignment, method-assign]
    try:
        yield zones
    finally:
        torch.empty, torch.empty_like = originals[:2]
        Tensor.new_empty = originals[2]  # type: ignore[method-assign]
    zones.check()


def place(zones: Redzones, tree: Any) -> Any:
    """A copy of a tree whose tensors stand between strips."""
    return map_tensors(zones.place, tree)
