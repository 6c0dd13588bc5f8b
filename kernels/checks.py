"""Argument checks of the public ops: what came, what is wanted."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from microturn.kernels.quantized import Weight
from microturn.kernels.rows import RowBatch

MOST_KINDS = 4096


class Passed(set[Hashable]):
    """Kinds of arguments (shapes, dtypes) that passed an op's checks and need not pass them again.

    Forgets all of them once there are MOST_KINDS: training has other rows at every step.
    """

    def add(self, kind: Hashable) -> None:
        if len(self) >= MOST_KINDS:
            self.clear()
        super().add(kind)


def check_shape(op: str, name: str, tensor: Weight, want: tuple[int | str, ...]) -> None:
    """`want` gives each axis as a size or as a letter that fits any size. Raises ValueError."""
    got = tensor.shape
    if len(got) == len(want):
        for g, w in zip(got, want, strict=True):
            if g != w and not isinstance(w, str):
                break
        else:
            return
    wanted = ", ".join(str(w) for w in want)
    raise ValueError(f"{op}: {name} must be [{wanted}], got {list(got)}")


def check_dtype(op: str, name: str, tensor: Tensor, want: torch.dtype) -> None:
    """Raises TypeError."""
    if tensor.dtype != want:
        raise TypeError(f"{op}: {name} must be {want}, got {tensor.dtype}; convert it first")


def check_rows(op: str, rows: RowBatch, num_rows: int) -> None:
    """Raises ValueError when `rows` describes another number of rows than the input has."""
    if rows.num_rows != num_rows:
        raise ValueError(f"{op}: rows describes {rows.num_rows} rows, the input has {num_rows}")
