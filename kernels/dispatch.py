"""Kernel or reference, by device. A missing kernel is an error, never a silent slow path."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def pick(
    op: str,
    device: torch.device,
    reference: Callable[P, R],
    kernel: Callable[[], Callable[P, R]] | None = None,
) -> Callable[P, R]:
    """The implementation of `op` on `device`.

    kernel: loads the Triton launcher when first needed, so that importing an op imports no Triton.
    Raises NotImplementedError for a device that this op has no implementation for.
    """
    if device.type == "cpu":
        return reference
    if device.type == "cuda" and kernel is not None:
        return kernel()
    raise NotImplementedError(
        f"{op} has no kernel for device {device.type!r}; move its inputs to the CPU, "
        f"where the reference runs"
    )
