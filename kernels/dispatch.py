"""Kernel or reference, by device. A missing kernel is an error, never a silent slow path."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def pick(op: str, device: torch.device, reference: Callable[P, R]) -> Callable[P, R]:
    """The implementation of `op` on `device`: the reference on a CPU, else the Triton launcher.

    A launcher is `microturn.kernels.<op>.launch.<op>_kernel`, imported when first needed, so that
    importing an op imports no Triton. It runs on CUDA devices; on "meta" tensors it is compiled
    (see `microturn.kernels.compiled`).
    Raises NotImplementedError for any other device.
    """
    if device.type == "cpu":
        return reference
    if device.type in ("cuda", "meta"):
        return cast(Callable[P, R], launcher(op))
    raise NotImplementedError(
        f"{op} has no kernel for device {device.type!r}; move its inputs to the CPU, "
        f"where the reference runs"
    )


def launcher(op: str) -> Callable[..., Any]:
    """The Triton launcher of `op`, with the op's own signature."""
    module = import_module(f"microturn.kernels.{op}.launch")
    return getattr(module, f"{op}_kernel")  # type: ignore[no-any-return]
