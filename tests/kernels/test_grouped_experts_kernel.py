"""The Triton kernels of grouped_experts: lists, launches, bits, idle rows, and planted bugs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from microturn.kernels import configs
from microturn.kernels.grouped_experts import ExpertInputs, ExpertWeights, regime
from microturn.kernels.grouped_experts.cases import BENCH_CASES, GroupedExpertsCase
from microturn.kernels.grouped_experts.launch import grouped_experts_kernel
from microturn.kernels.grouped_experts.reference import grouped_experts_reference
from microturn.kernels.launch import recording
from microturn.kernels.quantized import Quantized
from microturn.kernels.registry import OPS
from microturn.kernels.router import RouterWeights, Routing
from microturn.kernels.router.launch import router_kernel
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import (
    DTYPES,
    MAX_ERROR,
    assert_bitwise_equal,
    assert_close,
    error_ratio,
    ordered_dots,
    to_device,
    wide,
)

OP = OPS["grouped_experts"]
SMALL = GroupedExpertsCase(5, 64, 48, 6, 2, 1, "")


def inputs(
    case: GroupedExpertsCase, device: str, dtype: str = "fp32"
) -> tuple[ExpertInputs, ExpertWeights]:
    """fp8: fp32 rows beside 8-bit weights where the interpreter runs."""
    x, weights, _, _ = OP.make_inputs(case, dtype=DTYPES[dtype])
    if device == "cpu":
        x, weights = wide((x, weights))
    return to_device((x, weights), device)  # type: ignore[no-any-return]


def some(inputs: ExpertInputs, index: slice | list[int]) -> ExpertInputs:
    r = inputs.routing
    return ExpertInputs(
        inputs.x[index],
        Routing(r.topk_ids[index], r.topk_weights[index], r.shared_weights[index]),
    )


def reference(x: ExpertInputs, weights: ExpertWeights) -> Tensor:
    with torch.inference_mode():
        return grouped_experts_reference(*wide(to_device((x, weights), "cpu")))


@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_a_row_keeps_its_bits_in_any_company(device: str, dtype: str) -> None:
    """Alone, and among so many that blocks of 16, of 32 and of 64 rows are chosen."""
    case = GroupedExpertsCase(70, 144, 64, 9, 2, 2, "")
    sizes = {
        configs.choose("grouped_experts", "gate_up", fp8=dtype == "fp8", T=t)["BLOCK_SHARED_T"]
        for t in (1, 17, 70)
    }
    assert sizes == {16, 32, 64}
    x, weights = inputs(case, device, dtype)
    with ordered_dots():
        whole = grouped_experts_kernel(x, weights)
        for first, count in ((0, 1), (30, 1), (5, 3), (40, 18)):
            part = slice(first, first + count)
            assert_bitwise_equal(
                grouped_experts_kernel(some(x, part), weights), whole[part], f"{count} rows"
            )


@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_a_prefill_row_keeps_its_bits_among_prefill_rows(device: str, dtype: str) -> None:
    """Its expert's tile full in one company, of few rows in the other."""
    assert regime(256) == "decode" and regime(257) == "prefill"
    case = GroupedExpertsCase(300, 32, 16, 9, 2, 1, "")
    x, weights = inputs(case, device, dtype)
    use = configs.choose("grouped_experts", "gate_up_prefill", fp8=False, T=300, R=66)
    assert use["FEW_T"] < 66 < use["BLOCK_T"]
    order = torch.randperm(300)[:258].tolist()
    with ordered_dots():
        whole = grouped_experts_kernel(x, weights)
        part = grouped_experts_kernel(some(x, order), weights)
    assert_bitwise_equal(part, whole[order])


@pytest.mark.parametrize("t", [40, 270])
def test_all_rows_to_one_expert(device: str, t: int) -> None:
    """An expert with more rows than a tile, and many without any."""
    x, weights = inputs(GroupedExpertsCase(t, 48, 32, 7, 1, 1, ""), device)
    x.routing.topk_ids.fill_(4)
    assert_close(grouped_experts_kernel(x, weights).cpu(), reference(x, weights), 1e-5)


def test_a_router_before_it_spares_a_launch_and_changes_no_bit(device: str) -> None:
    case = dataclasses.replace(SMALL, T=21)
    x, weights = inputs(case, device)
    gate = torch.randn(case.E + case.Sh, case.H, device=device)
    bias = torch.zeros(case.E, device=device)
    rows = RowBatch.build(
        [0, 3, 1], [9, 4, 8], [0, 7, 2], exec_mask=[True, False, True], device=device
    )
    router_weights = RouterWeights(gate, bias, case.A, case.Sh, 8.0)
    routing = router_kernel(x.x, router_weights, None, rows)
    with recording() as launches:
        got = grouped_experts_kernel(ExpertInputs(x.x, routing), weights, None, rows)
    assert [launch.name for launch in launches] == ["gate_up_decode", "down_decode"]
    alone = dataclasses.replace(routing, work=None)
    with recording() as launches:
        again = grouped_experts_kernel(ExpertInputs(x.x, alone), weights, None, rows)
    assert [launch.name for launch in launches] == ["list_pairs", "gate_up_decode", "down_decode"]
    assert_bitwise_equal(got, again)


def test_the_experts_of_a_prefill_step_are_counted_by_its_own_list(device: str) -> None:
    """The router leaves room for it; rows of nobody count for nothing."""
    x, weights = inputs(GroupedExpertsCase(258, 16, 16, 40, 2, 1, ""), device)
    gate = torch.randn(41, 16, device=device)
    rows = RowBatch.build([0, 1], [3, 2], [0, 0], exec_mask=[True, False], device=device)
    routing = router_kernel(x.x, RouterWeights(gate, torch.zeros(40, device=device), 2, 1, 8.0))
    assert routing.work is None and routing.experts_hit is not None
    grouped_experts_kernel(ExpertInputs(x.x, routing), weights, None, rows)
    assert int(routing.experts_hit) == len(routing.topk_ids[:3].unique())
    grouped_experts_kernel(ExpertInputs(x.x, routing), weights)
    assert int(routing.experts_hit) == len(routing.topk_ids.unique()) > 6


def test_a_list_of_other_rows_is_not_believed(device: str) -> None:
    """Changed ids, another x, or other rows: the list is made again."""
    x, weights = inputs(SMALL, device)
    gate = torch.randn(SMALL.E + SMALL.Sh, SMALL.H, device=device)
    bias = torch.zeros(SMALL.E, device=device)
    routing = router_kernel(x.x, RouterWeights(gate, bias, SMALL.A, SMALL.Sh, 8.0))
    ids = (routing.topk_ids + 1) % SMALL.E
    changed = ExpertInputs(x.x, dataclasses.replace(routing, topk_ids=ids))
    assert_close(grouped_experts_kernel(changed, weights).cpu(), reference(changed, weights), 1e-5)
    other = ExpertInputs(x.x + 1, routing)
    assert_close(grouped_experts_kernel(other, weights).cpu(), reference(other, weights), 1e-5)
    rows = RowBatch.build([0], [5], [0], exec_mask=[False], device=device)
    assert not grouped_experts_kernel(ExpertInputs(x.x, routing), weights, None, rows).any()


@pytest.mark.parametrize("t", [13, 270])
@pytest.mark.parametrize("routed", [True, False])
def test_idle_rows_give_zeros_and_load_no_expert(device: str, t: int, routed: bool) -> None:
    case = GroupedExpertsCase(t, 48, 32, 5 if routed else 0, 2 if routed else 0, 1, "")
    x, weights = inputs(case, device)
    rows = RowBatch.build(
        [4, 7, -1], [3, 2, 4], [0, 5, 0], exec_mask=[True, False, True], device=device
    )
    with ordered_dots():  # how many rows share a tile is no business of BLAS
        want = grouped_experts_kernel(x, weights)[:3]
        x.x[3:] = float("nan")
        x.routing.topk_ids[3:] = 999
        got = grouped_experts_kernel(x, weights, None, rows)
    assert_bitwise_equal(got[:3], want)
    assert not got[3:].any()


def test_no_row_runs_and_no_expert_is_shared(device: str) -> None:
    """Nothing is multiplied; still somebody writes the zeros, and leaves the counters at zero."""
    x, weights = inputs(GroupedExpertsCase(3, 48, 32, 5, 2, 0, ""), device)
    rows = RowBatch.build([0], [3], [0], exec_mask=[False], device=device)
    assert not grouped_experts_kernel(x, weights, None, rows).any()
    assert_close(grouped_experts_kernel(x, weights).cpu(), reference(x, weights), 1e-5)


def test_weights_may_be_views_of_a_wider_matrix(device: str) -> None:
    """A dense MLP's w2 in blocks of its width; plain and in 8 bits, decode and prefill."""
    for t, dtype in ((5, "fp32"), (5, "fp8"), (260, "fp32")):
        x, weights = inputs(GroupedExpertsCase(t, 48, 128, 0, 0, 3, ""), device, dtype)

        def strided(w: Any) -> Any:
            if isinstance(w, Quantized):
                return Quantized(strided(w.values), strided(w.scales))
            _, rows, width = w.shape
            return w.transpose(0, 1).reshape(rows, -1).view(rows, -1, width).transpose(0, 1)

        views = dataclasses.replace(weights, shared_w2=strided(weights.shared_w2))
        w2 = views.shared_w2
        assert not (w2.values if isinstance(w2, Quantized) else w2).is_contiguous()
        assert_bitwise_equal(grouped_experts_kernel(x, views), grouped_experts_kernel(x, weights))
        ratio = MAX_ERROR["fp32" if device == "cpu" else dtype]
        assert_close(grouped_experts_kernel(x, views).cpu(), reference(x, views), ratio)
    turned = dataclasses.replace(weights, shared_w2=weights.shared_w2.mT.contiguous().mT)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the last axis of a weight must be dense"):
        grouped_experts_kernel(x, turned)


def swap_gate_and_up(w: ExpertWeights) -> ExpertWeights:
    assert isinstance(w.w13, Tensor)
    pairs = w.w13.view(w.w13.shape[0], -1, 2, w.w13.shape[2]).flip(2)
    return dataclasses.replace(w, w13=pairs.reshape(w.w13.shape))


def swap_experts(w: ExpertWeights) -> ExpertWeights:
    return dataclasses.replace(w, w2=w.w2.flip(0))  # type: ignore[union-attr]


@pytest.mark.parametrize("t", [5, 260])
@pytest.mark.parametrize("bug", [swap_gate_and_up, swap_experts])
def test_a_planted_bug_is_caught(
    device: str, t: int, bug: Callable[[ExpertWeights], ExpertWeights]
) -> None:
    x, weights = inputs(GroupedExpertsCase(t, 48, 32, 5, 2, 1, ""), device)
    expected = reference(x, weights)
    assert error_ratio(grouped_experts_kernel(x, weights).cpu(), expected) <= MAX_ERROR["fp32"]
    assert error_ratio(grouped_experts_kernel(x, bug(weights)).cpu(), expected) > 0.1


def test_another_order_of_the_choices_shows_in_the_bits(device: str) -> None:
    """The control of the bitwise tests: what is added in another order is not the same."""
    x, weights = inputs(GroupedExpertsCase(9, 64, 32, 8, 4, 2, ""), device)
    r = x.routing
    turned = Routing(r.topk_ids.flip(1), r.topk_weights.flip(1), r.shared_weights)
    with ordered_dots():
        one = grouped_experts_kernel(x, weights)
        two = grouped_experts_kernel(ExpertInputs(x.x, turned), weights)
    assert not torch.equal(one, two)
    assert error_ratio(one, two) < 1e-6


def test_rows_may_be_strided_and_out_may_be_wider(device: str) -> None:
    x, weights = inputs(SMALL, device)
    expected = grouped_experts_kernel(x, weights)
    room = torch.full((5, 80), float("nan"), device=device)
    room[:, :64] = x.x
    out = torch.full((5, 100), float("nan"), device=device)
    grouped_experts_kernel(ExpertInputs(room[:, :64], x.routing), weights, out=out[:, :64])
    assert_bitwise_equal(out[:, :64].contiguous(), expected)
    assert bool(out[:, 64:].isnan().all())


def test_the_bits_of_an_e4m3_number_are_those_of_a_bf16_one() -> None:
    """What from_e4m3_pairs does in assembly, which the interpreter cannot run: every byte."""
    codes = torch.arange(256, dtype=torch.uint8)
    extended = codes.view(torch.int8).int()  # prmt 0x9180
    bits = (extended << 4) & 0x87F0
    small = torch.where(bits >= 1 << 15, bits - (1 << 16), bits).short().view(torch.bfloat16)
    factor = torch.tensor([0x7B80], dtype=torch.int16).view(torch.bfloat16)
    assert float(factor) == 2.0**120
    exact = codes.view(torch.float8_e4m3fn).float()
    numbers = ~exact.isnan()
    assert torch.equal((small.double() * factor.double())[numbers], exact.double()[numbers])


@pytest.mark.parametrize("case", BENCH_CASES, ids=lambda c: c.id)
def test_bench_rows_hit_as_many_experts_as_their_bytes_count(case: GroupedExpertsCase) -> None:
    if case.T > 4096:
        case = dataclasses.replace(case, T=4096)
    drawn = OP.make_inputs(dataclasses.replace(case, H=16, I=16))
    ids = drawn.x.routing.topk_ids
    assert ids.unique().numel() == case.experts_hit
    assert all(len(set(row)) == case.A for row in ids[:64].tolist())
