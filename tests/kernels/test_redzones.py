"""The strips around tensors show reads and writes that were planted outside."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from microturn.kernels.launch import launch
from microturn.kernels.redzones import redzones

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")


@triton.jit
def shifted(x_ptr, y_ptr, n, shift_in: tl.constexpr, shift_out: tl.constexpr):
    at = tl.arange(0, 32)
    inside = at < n
    tl.store(y_ptr + at + shift_out, tl.load(x_ptr + at + shift_in, mask=inside), mask=inside)


def run(shift_in: int, shift_out: int) -> torch.Tensor:
    with redzones() as zones:
        x = zones.place(torch.arange(20.0))
        y = torch.empty(20)
        launch(shifted, (1,), x, y, 20, shift_in=shift_in, shift_out=shift_out)
    return y


def test_a_kernel_that_stays_inside_passes() -> None:
    assert run(0, 0).tolist() == list(range(20))


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_read_outside_brings_nan(shift: int) -> None:
    assert bool(run(shift, 0).isnan().any())


@pytest.mark.parametrize(("shift", "where"), [(-1, "before"), (1, "behind")])
def test_a_write_outside_is_named(shift: int, where: str) -> None:
    with pytest.raises(AssertionError, match=rf"wrote {where} a tensor \[20\]"):
        run(0, shift)


def test_what_was_never_written_is_nan() -> None:
    with redzones():
        assert bool(torch.empty(3).isnan().all())
        assert bool(torch.ones(2).new_empty(4).isnan().all())
