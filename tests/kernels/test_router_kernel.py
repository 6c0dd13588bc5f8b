"""The Triton kernel of router: its list, its bits, ties, and what a wrong kernel would show."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from microturn.kernels.grouped_experts import ExpertLayout
from microturn.kernels.launch import recording
from microturn.kernels.registry import OPS
from microturn.kernels.router import RouterWeights, Routing
from microturn.kernels.router.cases import RouterCase
from microturn.kernels.router.launch import router_kernel
from microturn.kernels.router.reference import router_reference
from microturn.kernels.router.work import TILE_ROWS
from microturn.kernels.rows import RowBatch
from microturn.kernels.testing import assert_bitwise_equal, ordered_dots, to_device

FIELDS = ("topk_ids", "topk_weights", "shared_weights")


def inputs(case: RouterCase, device: str) -> tuple[Tensor, RouterWeights]:
    x, weights, _, _ = OPS["router"].make_inputs(case)
    return to_device((x, weights), device)  # type: ignore[no-any-return]


def assert_lists(routing: Routing, num_experts: int, runs: Tensor) -> None:
    """The list holds each pair of the rows that run once, sorted by expert, in tiles."""
    work = routing.work
    assert work is not None
    a = routing.topk_ids.shape[1]
    layout = ExpertLayout.build(routing.topk_ids[runs].cpu(), num_experts)
    pairs = (runs.nonzero()[:, 0, None] * a + torch.arange(a)).view(-1)[layout.pairs]
    assert work.pairs[: len(pairs)].tolist() == pairs.tolist()
    want = []
    offsets = layout.expert_offsets.tolist()
    for expert, (begin, end) in enumerate(itertools.pairwise(offsets)):
        for first in range(begin, end, TILE_ROWS):
            want.append([expert, first, min(TILE_ROWS, end - first)])
    size = int(work.size[0])
    assert size == len(want) <= work.bound
    assert work.tiles.view(-1, 4)[:size, :3].tolist() == want
    assert routing.experts_hit is not None
    assert int(routing.experts_hit) == len({expert for expert, _, _ in want})


@pytest.mark.parametrize(
    "case",
    [
        RouterCase(1, 64, 16, 2, 2, "one row"),
        RouterCase(41, 64, 5, 3, 1, "more than a tile an expert"),
        RouterCase(23, 48, 64, 6, 0, "more pairs than are sorted at once"),
    ],
    ids=lambda c: c.id,
)
def test_the_experts_are_listed(case: RouterCase, device: str) -> None:
    x, weights = inputs(case, device)
    assert_lists(router_kernel(x, weights), case.E, torch.ones(case.T, dtype=torch.bool))


def test_all_rows_to_one_expert_make_several_tiles(device: str) -> None:
    x, weights = inputs(RouterCase(70, 32, 8, 1, 1, ""), device)
    weights.bias[5] = 10.0
    routing = router_kernel(x, weights)
    assert routing.topk_ids.unique().tolist() == [5]
    assert_lists(routing, 8, torch.ones(70, dtype=torch.bool))


def test_rows_that_do_not_run_are_not_listed(device: str) -> None:
    x, weights = inputs(RouterCase(19, 32, 8, 2, 1, ""), device)
    x[3:5] = float("nan")
    rows = RowBatch.build(
        [4, 2, -1, 7],
        [3, 2, 4, 8],
        [0, 9, 0, 5],
        exec_mask=[True, False, True, True],
        device=device,
    )
    runs = torch.zeros(19, dtype=torch.bool)
    runs[:3] = runs[9:17] = True  # rows 17 and 18 belong to no line
    routing = router_kernel(x, weights, None, rows)
    assert_lists(routing, 8, runs)
    assert int(routing.topk_ids.min()) >= 0 and int(routing.topk_ids.max()) < 8


def test_no_row_runs(device: str) -> None:
    x, weights = inputs(RouterCase(3, 32, 8, 2, 1, ""), device)
    rows = RowBatch.build([0], [3], [0], exec_mask=[False], device=device)
    routing = router_kernel(x, weights, None, rows)
    assert_lists(routing, 8, torch.zeros(3, dtype=torch.bool))


def test_a_row_keeps_its_bits_in_any_company(device: str) -> None:
    """Alone, among few, among many, and in a prefill step, where one program sums all chunks."""
    x, weights = inputs(RouterCase(290, 1200, 12, 3, 2, ""), device)
    with ordered_dots():
        whole = router_kernel(x, weights)
        for first, count in ((0, 1), (11, 3), (40, 20)):
            part = router_kernel(x[first : first + count], weights)
            for field in FIELDS:
                expected = getattr(whole, field)[first : first + count]
                assert_bitwise_equal(getattr(part, field), expected, f"{field}, {count} rows")


def test_ties_go_to_the_lower_id(device: str) -> None:
    weights = RouterWeights(
        torch.zeros(66, 16, device=device), torch.zeros(64, device=device), 6, 2, 1.0
    )
    x = torch.randn(5, 16, device=device)
    assert router_kernel(x, weights).topk_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 5
    weights.bias[[40, 9]] = 1.0
    assert router_kernel(x, weights).topk_ids.tolist() == [[9, 40, 0, 1, 2, 3]] * 5


def test_sigmoids_that_underflow_still_sum_to_the_scale(device: str) -> None:
    gate = -torch.ones(6, 16, device=device) * 20
    weights = RouterWeights(gate, torch.zeros(4, device=device), 2, 2, 8.0)
    got = router_kernel(torch.ones(2, 16, device=device), weights)
    total = got.topk_weights.sum(1) + got.shared_weights.sum(1)
    assert torch.allclose(total, torch.full((2,), 8.0, device=device))


def test_a_nan_row_stays_alone_and_in_bounds(device: str) -> None:
    x, weights = inputs(RouterCase(5, 32, 8, 2, 1, ""), device)
    want = router_kernel(x, weights)
    x[2] = float("nan")
    got = router_kernel(x, weights)
    others = [0, 1, 3, 4]
    for field in FIELDS:
        assert_bitwise_equal(getattr(got, field)[others], getattr(want, field)[others], field)
    assert got.topk_ids[2].tolist() == [0, 1]
    assert bool(got.topk_weights[2].isnan().all())


def test_without_the_bias_other_experts_are_chosen(device: str) -> None:
    """The control of every comparison with the reference: a forgotten bias shows."""
    x, weights = inputs(RouterCase(32, 64, 16, 2, 2, ""), device)
    right = router_reference(*to_device((x, weights), "cpu")).topk_ids
    assert torch.equal(router_kernel(x, weights).topk_ids.cpu(), right)
    weights = dataclasses.replace(weights, bias=torch.zeros_like(weights.bias))
    assert not torch.equal(router_kernel(x, weights).topk_ids.cpu(), right)


def test_one_launch_and_no_list_in_a_prefill_step(device: str) -> None:
    for rows, listed in ((256, True), (257, False)):
        x, weights = inputs(RouterCase(rows, 16, 8, 2, 1, ""), device)
        with recording() as launches:
            routing = router_kernel(x, weights)
        assert [launch.name for launch in launches] == ["route"]
        assert (routing.work is not None) is listed


def test_out_is_written(device: str) -> None:
    x, weights = inputs(RouterCase(3, 32, 8, 2, 1, ""), device)
    want = router_kernel(x, weights)
    out = Routing(*(torch.empty_like(getattr(want, field)) for field in FIELDS))
    assert router_kernel(x, weights, out=out) is out
    for field in FIELDS:
        assert_bitwise_equal(getattr(out, field), getattr(want, field), field)
    wide = dataclasses.replace(out, topk_ids=torch.empty(2, 3, dtype=torch.int32, device=device).T)
    with pytest.raises(ValueError, match="out must be contiguous"):
        router_kernel(x, weights, out=wide)
