"""Comparisons shared by tests and bench: an error ratio, bitwise equality, poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from microturn.kernels.draw import FP8
from microturn.kernels.redzones import place, redzones
from microturn.kernels.registry import Case, Op, OpInputs
from microturn.kernels.tree import map_tensors, tensors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": FP8}
"""By the names used in results; fp8 is 8-bit weights (or keys and values) beside bf16."""

MAX_ERROR = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2, "fp8": 1.5e-2}
"""Error ratio of a kernel against its reference in fp32 on the same numbers."""


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


class Compared(NamedTuple):
    """The largest error ratio over an op's results and over the state it leaves behind."""

    result: float
    state: float


def wide(tree: Any) -> Any:
    """Every floating tensor as fp32; 8-bit weights stay as they are."""

    def widen(tensor: Tensor) -> Tensor:
        narrow = tensor.dtype in (torch.float16, torch.bfloat16)
        return tensor.float() if narrow else tensor.clone()

    return map_tensors(widen, tree)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """A copy of every tensor on a device."""
    return map_tensors(lambda tensor: tensor.to(device, copy=True), tree)


def compare(
    op: Op, case: Case, dtype: str, *, device: torch.device | str = "cpu", seed: int = 0
) -> Compared:
    """Runs the kernel on `device` (a CPU: in Triton's interpreter) and the reference in fp32 on the
    CPU, on the same numbers, and compares results and arenas. Integers must be equal.

    The interpreter's bf16 dot is wrong: there, what would be bf16 is given to the kernel as fp32.
    There, too, every tensor stands between strips of NaN (`kernels.redzones`).
    """
    inputs = op.make_inputs(case, seed=seed, dtype=DTYPES[dtype])
    expected_inputs = OpInputs(*wide(tuple(inputs)))
    with torch.inference_mode():
        expected = op.reference(*expected_inputs)
        if torch.device(device).type == "cpu":
            narrow = dtype in ("bf16", "fp8")
            with redzones() as zones:
                given = wide(tuple(inputs)) if narrow else tuple(inputs)
                actual_inputs = OpInputs(*place(zones, given))
                actual = op.kernel(*actual_inputs)
        else:
            actual_inputs = OpInputs(*to_device(tuple(inputs), device))
            actual = to_device(op.kernel(*actual_inputs), "cpu")
    return Compared(
        _worst(actual, expected),
        _worst(to_device(actual_inputs.state, "cpu"), expected_inputs.state),
    )


def _worst(actual: Any, expected: Any) -> float:
    worst = 0.0
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        if not e.is_floating_point():
            assert_bitwise_equal(a.to(e.dtype), e, "integers")
            continue
        a, e = a.float(), e.float()
        if not torch.equal(a.isnan(), e.isnan()):
            return float("inf")
        worst = max(worst, error_ratio(a.nan_to_num(0.0), e.nan_to_num(0.0)))
    return worst


@contextmanager
def ordered_dots() -> Iterator[None]:
    """Inside, tl.dot in the interpreter adds each element's products one by one, in order.

    As matrix units do, it gives an element the same bits whatever stands beside it in the tile;
    numpy's own product does not. Use it where kernels with different tiles must agree to the bit.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    plain_dot = type(builder).create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        left, right = a.data.astype(np.float32), b.data.astype(np.float32)
        total = d.data.astype(np.float32).copy()
        for k in range(left.shape[-1]):
            total += left[..., :, k : k + 1] * right[..., k : k + 1, :]
        return interpreter.TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    type(builder).create_dot = create_dot
    try:
        yield
    finally:
        type(builder).create_dot = plain_dot


@contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """Inside, the interpreter runs the programs of a launch in a random order.

    It runs them one by one, so a program that reads what another of its launch wrote, or counts on
    coming last, gives other results than in the usual order: a race, on a GPU.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    set_grid_dim, set_grid_idx = type(builder).set_grid_dim, type(builder).set_grid_idx
    generator = np.random.default_rng(seed)
    grid: list[int] = []
    order: list[int] = []

    def shuffle(self: Any, *sizes: int) -> None:
        grid[:] = sizes
        order[:] = generator.permutation(int(np.prod(sizes))).tolist()
        set_grid_dim(self, *sizes)

    def place(self: Any, x: int, y: int, z: int) -> None:
        index = order[(x * grid[1] + y) * grid[2] + z]
        set_grid_idx(self, *(int(i) for i in np.unravel_index(index, grid)))

    type(builder).set_grid_dim, type(builder).set_grid_idx = shuffle, place
    try:
        yield
    finally:
        type(builder).set_grid_dim, type(builder).set_grid_idx = set_grid_dim, set_grid_idx
