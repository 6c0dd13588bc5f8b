"""The check for races finds one that was planted."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from microturn.kernels.launch import launch
from microturn.kernels.testing import shuffled_programs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")


@triton.jit
def running_sum(x_ptr, n: tl.constexpr):
    """Races: program i reads what program i - 1 writes."""
    i = tl.program_id(0)
    before = tl.load(x_ptr + i - 1, mask=i > 0, other=0.0)
    tl.store(x_ptr + i, tl.load(x_ptr + i) + before)


@triton.jit
def doubled(x_ptr, n: tl.constexpr):
    """Does not: every program has its own place in a grid of two dimensions."""
    i = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(x_ptr + i, 2 * tl.load(x_ptr + i))


def test_a_race_gives_another_result() -> None:
    plain, shuffled = torch.ones(8), torch.ones(8)
    launch(running_sum, (8,), plain, n=8)
    with shuffled_programs(0):
        launch(running_sum, (8,), shuffled, n=8)
    assert plain.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert shuffled.tolist() != plain.tolist()


def test_every_program_still_runs_once() -> None:
    x = torch.arange(12.0)
    with shuffled_programs(3):
        launch(doubled, (3, 4), x, n=12)
    assert x.tolist() == [2.0 * i for i in range(12)]
