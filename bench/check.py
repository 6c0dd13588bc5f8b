"""Correctness before speed: a provider's result against the reference in fp32, same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microturn.kernels.registry import OpInputs
from microturn.kernels.testing import error_ratio, to_device, wide
from microturn.kernels.tree import tensors

MOST_DIFFERENT = 1e-3
"""Share of integers (ids, codes) that may differ: near-ties that another order of adding decides
the other way.
"""
CPU_BYTES = 4 << 30
"""Inputs up to this size are checked on the CPU where the reference cannot run on the GPU."""


class Uncheckable(Exception):
    """There is nothing to compare with."""


class Expected(NamedTuple):
    """result, the state left behind, and a word on where they were computed, if not in place."""

    result: Any
    state: Any
    note: str = ""


def nbytes(tree: Any) -> int:
    """Of the distinct tensors."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors(tree)}.values())


def expected(
    reference: Callable[..., Any], inputs: OpInputs, device: torch.device, *, state: bool = True
) -> Expected:
    """What the reference says in fp32, on the device; if it cannot run there, on the CPU. Raises
    Uncheckable.

    Only a result (and state, where asked for) is kept: the widened inputs are freed.
    """
    try:
        return _computed(reference, inputs, device, state)
    except (RuntimeError, NotImplementedError) as error:
        if device.type == "cpu":
            raise
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises again if the device itself is lost
            torch.cuda.empty_cache()
        size = nbytes(tuple(inputs))
        if size > CPU_BYTES:
            raise Uncheckable(
                f"the reference does not run on the device ({_first_line(error)}), and "
                f"{size / 1e9:.1f} GB are too many for the CPU"
            ) from error
    cpu = torch.device("cpu")
    found = _computed(reference, OpInputs(*to_device(tuple(inputs), cpu)), cpu, state)
    result, left = to_device((found.result, found.state), device)
    return Expected(result, left, "checked on the CPU")


def _computed(
    reference: Callable[..., Any], inputs: OpInputs, device: torch.device, state: bool
) -> Expected:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode(), device:
            widened = OpInputs(*wide(tuple(inputs)))
            result = reference(*widened)
            return Expected(result, widened.state if state else None)
    finally:
        torch.backends.cudnn.allow_tf32 = before


def error(actual: Any, wanted: Any) -> float:
    """The largest error ratio of any tensor; infinite where NaN stand elsewhere, where shapes
    differ, or where more integers differ than near-ties explain.
    """
    worst = 0.0
    pairs = list(tensors(actual)), list(tensors(wanted))
    if len(pairs[0]) != len(pairs[1]):
        return float("inf")
    for a, e in zip(*pairs, strict=True):
        worst = max(worst, _error(a, e))
    return worst


def _error(actual: Tensor, wanted: Tensor) -> float:
    if actual.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point():
        different = (actual.to(wanted.dtype) != wanted).double().mean()
        return float("inf") if wanted.numel() and float(different) > MOST_DIFFERENT else 0.0
    actual, wanted = actual.float(), wanted.float()
    if not torch.equal(actual.isnan(), wanted.isnan()):
        return float("inf")
    return error_ratio(actual.nan_to_num(0.0), wanted.nan_to_num(0.0))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
