"""grouped_experts: values against fp64, layout, bits, idle lines, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from microturn.kernels.grouped_experts import (
    ExpertInputs,
    ExpertLayout,
    ExpertWeights,
    grouped_experts,
    swiglu,
)
from microturn.kernels.grouped_experts.cases import CASES, GroupedExpertsCase, make_inputs
from microturn.kernels.router import Routing
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal, assert_close

LARGE = GroupedExpertsCase(61, 64, 48, 8, 2, 2, "")


def expert(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    gate, up = w13[0::2] @ x, w13[1::2] @ x
    return w2 @ (gate * gate.sigmoid() * up)


def in_fp64(inputs: ExpertInputs, w: ExpertWeights) -> Tensor:
    """One row and one expert at a time."""
    r, x = inputs.routing, inputs.x.double()
    w13, w2, s13, s2 = (v.double() for v in (w.w13, w.w2, w.shared_w13, w.shared_w2))
    y = torch.zeros_like(x)
    for t in range(x.shape[0]):
        for e, share in zip(r.topk_ids[t].tolist(), r.topk_weights[t].double(), strict=True):
            y[t] += share * expert(x[t], w13[e], w2[e])
        for s, share in enumerate(r.shared_weights[t].double()):
            y[t] += share * expert(x[t], s13[s], s2[s])
    return y


def choose(inputs: ExpertInputs, index: Tensor) -> ExpertInputs:
    r = inputs.routing
    return ExpertInputs(
        inputs.x[index],
        Routing(r.topk_ids[index], r.topk_weights[index], r.shared_weights[index]),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_matches_fp64(case: GroupedExpertsCase) -> None:
    x, w, state, rows = make_inputs(case)
    assert_close(grouped_experts(x, w, state, rows), in_fp64(x, w), 2e-6)


def test_halves_instead_of_alternating_rows_do_not_match() -> None:
    """The control: w13 read as [gates; ups] is the same shape and wrong."""
    x, w, _, _ = make_inputs(CASES[2])
    halves = dataclasses.replace(w, w13=torch.cat([w.w13[:, 0::2], w.w13[:, 1::2]], 1))
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(grouped_experts(x, halves), in_fp64(x, w), 1e-2)


@pytest.mark.parametrize("width", [16, 48, 64])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(width: int) -> None:
    x, w, _, _ = make_inputs(dataclasses.replace(LARGE, I=width))
    together = grouped_experts(x, w)
    for size in (1, 3, 8, 9, 30):
        parts = torch.arange(61).split(size)
        cut = torch.cat([grouped_experts(choose(x, part), w) for part in parts])
        assert_bitwise_equal(cut, together, f"{size} rows at a time")
    order = torch.randperm(61)
    assert_bitwise_equal(grouped_experts(choose(x, order), w), together[order])


@torch.no_grad()
def test_experts_called_with_plain_products_do_depend_on_it() -> None:
    """The control of the test above: without tiles of 8 the row count shows in the bits."""
    w13 = torch.randn(256, 256)
    x = torch.randn(61, 256)
    alone = torch.cat([x[t : t + 1] @ w13.T for t in range(61)])
    assert not torch.equal(x @ w13.T, alone)


@pytest.mark.parametrize("width", [16, 48, 1024])
@torch.no_grad()
def test_swiglu_of_a_row_does_not_depend_on_its_batch(width: int) -> None:
    h = torch.randn(23, 2 * width)
    alone = torch.cat([swiglu(h[t : t + 1]) for t in range(23)])
    assert_bitwise_equal(swiglu(h), alone)
    gate, up = h[:, 0::2].double(), h[:, 1::2].double()
    assert_close(alone, gate * gate.sigmoid() * up, 1e-6)


def test_layout_is_the_worked_example() -> None:
    layout = ExpertLayout.build(torch.tensor([[2, 0], [3, 2], [0, 2]], dtype=torch.int32), 4)
    assert layout.expert_offsets.tolist() == [0, 2, 2, 5, 6]
    assert layout.pairs.tolist() == [1, 4, 0, 3, 5, 2]
    assert layout.rows.tolist() == [0, 2, 0, 1, 2, 1]
    assert layout.places.tolist() == [2, 0, 5, 3, 1, 4]


def test_idle_lines_give_zeros_and_load_no_expert() -> None:
    x, w, _, _ = make_inputs(CASES[2])
    x = choose(x, torch.tensor([0, 1, 2, 0, 1]))
    x.x[2:4] = float("nan")
    x.routing.topk_ids[2:4] = 999
    rows = RowBatch.build([4, 7, -1, 1], [2, 1, 1, 1], [0, 5, 0, 9], exec_mask=[1, 0, 1, 1])
    got = grouped_experts(x, w, None, rows)
    run = torch.tensor([0, 1, 4])
    assert_bitwise_equal(got[run], grouped_experts(choose(x, run), w))
    assert not got[2:4].any()


def test_a_nan_row_stays_alone() -> None:
    x, w, _, _ = make_inputs(LARGE)
    want = grouped_experts(x, w)
    x.x[7] = float("nan")
    got = grouped_experts(x, w)
    others = torch.arange(61) != 7
    assert_bitwise_equal(got[others], want[others])
    assert got[7].isnan().all()


def test_gradients_match_fp64() -> None:
    inputs, w, _, _ = make_inputs(GroupedExpertsCase(11, 16, 16, 4, 2, 2, ""))
    r = inputs.routing

    def leaves(dtype: torch.dtype) -> list[Tensor]:
        given = (inputs.x, r.topk_weights, r.shared_weights, w.w13, w.w2, w.shared_w13, w.shared_w2)
        return [v.to(dtype, copy=True).requires_grad_() for v in given]

    ours, theirs = leaves(torch.float32), leaves(torch.float64)
    for run, v in ((grouped_experts, ours), (in_fp64, theirs)):
        given = ExpertInputs(v[0], Routing(r.topk_ids, v[1], v[2]))
        run(given, ExpertWeights(*v[3:])).square().sum().backward()  # type: ignore[operator]
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad, 1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_written_again_are_read_again(dtype: torch.dtype) -> None:
    """What is kept of them are views, never copies in another dtype."""
    inputs = make_inputs(CASES[2], dtype=dtype)
    with torch.inference_mode():
        before = grouped_experts(inputs.x, inputs.weights)
        for weight in vars(inputs.weights).copy().values():
            if isinstance(weight, Tensor):
                weight.mul_(2)
        after = grouped_experts(inputs.x, inputs.weights)
        fresh = grouped_experts(inputs.x, dataclasses.replace(inputs.weights))
    assert_bitwise_equal(after, fresh)
    assert not torch.equal(before, after)


def test_out_is_used() -> None:
    x, w, _, _ = make_inputs(CASES[2])
    out = torch.empty(3, 256)
    assert grouped_experts(x, w, out=out) is out
    assert_bitwise_equal(out, grouped_experts(x, w))


def test_wrong_shapes_are_named() -> None:
    x, w, _, _ = make_inputs(CASES[2])
    with pytest.raises(ValueError, match=r"w2 must be \[16, 256, 64\], got \[16, 256, 63\]"):
        grouped_experts(x, dataclasses.replace(w, w2=w.w2[..., 1:]))
    with pytest.raises(ValueError, match=r"topk_ids must be \[2, A\], got \[3, 2\]"):
        grouped_experts(ExpertInputs(x.x[:2], x.routing), w)
