"""Comparisons shared by tests and bench: an error ratio, bitwise equality, poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def error_ratio(actual: Tensor, expected: Tensor) -> float:
    """rms(actual - expected) / rms(expected), in fp64; NaN counts as infinite."""
    a, e = actual.double(), expected.double()
    if a.shape != e.shape:
        raise AssertionError(f"shapes differ: {list(a.shape)} and {list(e.shape)}")
    if a.numel() == 0:
        return 0.0
    error = (a - e).square().mean().sqrt() / e.square().mean().sqrt().clamp_min(1e-30)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def assert_close(actual: Tensor, expected: Tensor, ratio: float, what: str = "result") -> None:
    """Fails when the error ratio is above `ratio`."""
    got = error_ratio(actual, expected)
    assert got <= ratio, f"{what}: error ratio {got:.3g} above {ratio:.3g}"


def assert_bitwise_equal(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Fails with the first differing index. Shapes and dtypes must match too."""
    assert actual.shape == expected.shape, (
        f"{what}: shapes {list(actual.shape)} and {list(expected.shape)} differ"
    )
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} and {expected.dtype} differ"
    if torch.equal(actual, expected):
        return
    different = (actual != expected) | (actual.isnan() != expected.isnan())
    at = different.nonzero()[0].tolist() if bool(different.any()) else "NaN in both"
    raise AssertionError(f"{what}: {int(different.sum())} values differ, the first at {at}")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, floating-point torch.empty and empty_like come filled with NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
        # `with torch.device(...)` knows its constructors by identity and would miss this one.
        if kwargs.get("device") is None:
            kwargs["device"] = torch.get_default_device()
        return fill(empty(*args, **kwargs))

    def poisoned_empty_like(*args: Any, **kwargs: Any) -> Tensor:
        return fill(empty_like(*args, **kwargs))

    torch.empty, torch.empty_like = poisoned_empty, poisoned_empty_like
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like
