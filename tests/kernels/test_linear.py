"""linear: values against fp64, bits against the batch it stands in."""

from __future__ import annotations

import pytest
import torch

from microturn.kernels.checks import MOST_KINDS, Passed
from microturn.kernels.linear import linear
from microturn.kernels.linear.cases import CASES, LinearCase, make_inputs
from microturn.kernels.testing import assert_bitwise_equal, assert_close


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_matches_fp64(case: LinearCase) -> None:
    x, weights, state, rows = make_inputs(case)
    want = x.double() @ weights.double().T
    assert_close(linear(x, weights, state, rows), want, 1e-6)


@pytest.mark.parametrize(("n", "k"), [(16, 16), (40, 64), (256, 256), (1, 96), (1024, 512)])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(n: int, k: int) -> None:
    x, weights = torch.randn(67, k), torch.randn(n, k)
    together = linear(x, weights)
    alone = torch.cat([linear(x[t : t + 1], weights) for t in range(67)])
    assert_bitwise_equal(together, alone)
    order = torch.randperm(67)
    assert_bitwise_equal(linear(x[order], weights), together[order])


def test_plain_torch_does_depend_on_it() -> None:
    """The control: without tiles the same comparison fails, so the test above can fail."""
    x, weights = torch.randn(67, 256), torch.randn(256, 256)
    together = torch.nn.functional.linear(x, weights)
    alone = torch.cat([torch.nn.functional.linear(x[t : t + 1], weights) for t in range(67)])
    assert not torch.equal(together, alone)


def test_gradient_is_the_plain_one() -> None:
    x = torch.randn(5, 32)
    weights = torch.randn(16, 32, requires_grad=True)
    linear(x, weights).square().sum().backward()
    want = 2 * (x @ weights.detach().T).T @ x
    assert_close(weights.grad, want, 1e-6)  # type: ignore[arg-type]


def test_out_is_used() -> None:
    x, weights = torch.randn(3, 16), torch.randn(16, 16)
    out = torch.full((3, 16), float("nan"))
    assert linear(x, weights, out=out) is out
    assert_bitwise_equal(out, linear(x, weights))


def test_wrong_width_says_what_is_wanted() -> None:
    with pytest.raises(ValueError, match=r"linear: x must be \[T, 32\], got \[3, 16\]"):
        linear(torch.randn(3, 16), torch.randn(8, 32))
    with pytest.raises(TypeError, match="float32"):
        linear(torch.randn(3, 32), torch.randn(8, 32, dtype=torch.float16))


def test_kinds_that_passed_are_forgotten_before_they_are_too_many() -> None:
    passed = Passed()
    for kind in range(3 * MOST_KINDS):
        passed.add(kind)
        assert kind in passed and len(passed) <= MOST_KINDS
    assert 0 not in passed
