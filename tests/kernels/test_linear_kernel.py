"""The Triton kernel of linear: bits, splits along K, and what a wrong kernel would show."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.kernels import configs
from microturn.kernels.linear.cases import BENCH_CASES, CASES, LinearCase
from microturn.kernels.linear.launch import linear_kernel
from microturn.kernels.quantized import quantize
from microturn.kernels.registry import OPS
from microturn.kernels.testing import (
    MAX_ERROR,
    assert_bitwise_equal,
    compare,
    error_ratio,
    ordered_dots,
)

OP = OPS["linear"]
SPLIT = LinearCase(19, 72, 300, "K over two splits, the last block partial")
WIDE = LinearCase(5, 4160, 32, "more outputs than a split shape has: one split")


def inputs(case: LinearCase, device: str) -> tuple[Tensor, Tensor]:
    x, weights, _, _ = OP.make_inputs(case)
    return x.to(device), weights.to(device)


@pytest.mark.parametrize("case", [SPLIT, WIDE], ids=lambda c: c.id)
def test_shapes_with_and_without_a_split_match(case: LinearCase, device: str) -> None:
    split = configs.choose("linear", fp8=False, T=case.T, N=case.N, K=case.K)["SPLIT"]
    assert split == (2 if case is SPLIT else 1)
    assert compare(OP, case, "fp32", device=device).result <= MAX_ERROR["fp32"]


@pytest.mark.parametrize("case", [SPLIT, WIDE], ids=lambda c: c.id)
def test_a_row_keeps_its_bits_in_any_company(case: LinearCase, device: str) -> None:
    """Alone, among a few, and among so many that another tile is chosen."""
    x, weights = inputs(dataclasses.replace(case, T=130), device)
    with ordered_dots():
        whole = linear_kernel(x, weights)
        for first, count in ((0, 1), (7, 1), (3, 19), (60, 70)):
            part = linear_kernel(x[first : first + count], weights)
            assert_bitwise_equal(part, whole[first : first + count], f"{count} rows")


def test_bits_would_change_with_the_order_of_k(device: str) -> None:
    """What the test above could not see if sums were exact."""
    x, weights = inputs(SPLIT, device)
    order = torch.arange(SPLIT.K - 1, -1, -1, device=device)
    with ordered_dots():
        forward = linear_kernel(x, weights)
        backward = linear_kernel(x[:, order].contiguous(), weights[:, order].contiguous())
    assert not torch.equal(forward, backward)
    assert error_ratio(forward, backward) < 1e-5


def test_rows_may_be_strided_and_out_may_be_wider(device: str) -> None:
    x, weights = inputs(CASES[2], device)
    expected = linear_kernel(x, weights)
    wide = torch.full((x.shape[0], 100), float("nan"), device=device)
    wide[:, : x.shape[1]] = x
    out = torch.full((x.shape[0], 200), float("nan"), device=device)
    linear_kernel(wide[:, : x.shape[1]], weights, out=out[:, : weights.shape[0]])
    assert_bitwise_equal(out[:, : weights.shape[0]].contiguous(), expected)
    assert bool(out[:, weights.shape[0] :].isnan().all())


def test_a_forgotten_scale_is_caught(device: str) -> None:
    """8-bit weights read without their powers of two."""
    x, weights = inputs(LinearCase(3, 64, 256, ""), device)
    q = quantize(weights)
    right = OP.reference(
        x.cpu(), dataclasses.replace(q, values=q.values.cpu(), scales=q.scales.cpu())
    )
    ones = torch.full_like(q.scales.view(torch.uint8), 127).view(torch.float8_e8m0fnu)
    got = linear_kernel(x, q).cpu()
    assert error_ratio(got, right) <= MAX_ERROR["fp32"]
    assert error_ratio(linear_kernel(x, dataclasses.replace(q, scales=ones)).cpu(), right) > 0.5


def test_counters_are_zero_again(device: str) -> None:
    """A second call with splits finds the counters as the first did."""
    x, weights = inputs(SPLIT, device)
    first = linear_kernel(x, weights)
    assert_bitwise_equal(linear_kernel(x, weights), first)


def test_no_entry_of_the_table_is_dead() -> None:
    """Every launch configuration is reached by some case, tested or measured."""
    reached = {
        str(configs.choose("linear", fp8=fp8, T=c.T, N=c.N, K=c.K))
        for c in (*CASES, *BENCH_CASES)
        for fp8 in (False, True)
    }
    assert reached == {str(entry["use"]) for entry in configs.table("linear")}
