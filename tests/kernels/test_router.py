"""router: choices and weights against fp64, ties, bits, gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from microturn.kernels.router import RouterWeights, Routing, router
from microturn.kernels.router.cases import CASES, RouterCase, make_inputs
from microturn.kernels.testing import assert_bitwise_equal, assert_close

FIELDS = ("topk_ids", "topk_weights", "shared_weights")


def in_fp64(x: torch.Tensor, w: RouterWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen ids and the weights of chosen and shared, one row at a time, by the book."""
    logits = x.double() @ w.weight.double().T
    e = w.num_experts
    ids, shares = [], []
    for row in logits:
        score = row[:e].sigmoid() + w.bias.double()
        order = sorted(range(e), key=lambda i: (-float(score[i]), i))[: w.top_k]
        s = torch.cat([row[order], row[e:]]).sigmoid()
        ids.append(torch.tensor(order))
        shares.append(s / s.sum() * float(w.scale))
    return torch.stack(ids), torch.stack(shares)


@pytest.mark.parametrize("case", [c for c in CASES if c.T], ids=lambda c: c.id)
def test_matches_fp64(case: RouterCase) -> None:
    x, w, state, rows = make_inputs(case)
    got = router(x, w, state, rows)
    ids, shares = in_fp64(x, w)
    assert torch.equal(got.topk_ids.long(), ids)
    assert got.topk_ids.dtype == torch.int32
    assert_close(torch.cat([got.topk_weights, got.shared_weights], 1), shares, 1e-6)


def test_no_rows_give_empty_routing() -> None:
    got = router(*make_inputs(CASES[0]))
    assert got.topk_ids.shape == (0, 2) and got.shared_weights.shape == (0, 2)


def test_the_bias_changes_choices_but_no_weight() -> None:
    x, w, _, _ = make_inputs(RouterCase(32, 64, 16, 2, 2, ""))
    with_bias = router(x, w)
    without = router(x, dataclasses.replace(w, bias=torch.zeros(16)))
    same = (with_bias.topk_ids == without.topk_ids).all(dim=1)
    assert 0 < int(same.sum()) < 32
    assert_bitwise_equal(with_bias.topk_weights[same], without.topk_weights[same])


def test_ties_go_to_the_lower_id() -> None:
    gate = torch.zeros(66, 16)
    w = RouterWeights(gate, torch.zeros(64), 6, 2, 1.0)
    got = router(torch.randn(5, 16), w)
    assert got.topk_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 5
    bias = torch.zeros(64)
    bias[[40, 9]] = 1.0
    got = router(torch.randn(2, 16), dataclasses.replace(w, bias=bias))
    assert got.topk_ids.tolist() == [[9, 40, 0, 1, 2, 3]] * 2


def test_logits_that_underflow_the_sigmoid_still_sum_to_the_scale() -> None:
    gate = -torch.ones(6, 16) * 20
    got = router(torch.ones(2, 16), RouterWeights(gate, torch.zeros(4), 2, 2, 8.0))
    total = got.topk_weights.sum(1) + got.shared_weights.sum(1)
    assert_close(total, torch.full((2,), 8.0), 1e-6)


@pytest.mark.parametrize("e", [14, 16, 62, 256])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(e: int) -> None:
    x, w, _, _ = make_inputs(RouterCase(67, 64, e, 3, 2, ""))
    together = router(x, w)
    alone = [router(x[t : t + 1], w) for t in range(67)]
    order = torch.randperm(67)
    shuffled = router(x[order], w)
    for field in FIELDS:
        whole = getattr(together, field)
        assert_bitwise_equal(whole, torch.cat([getattr(a, field) for a in alone]), field)
        assert_bitwise_equal(getattr(shuffled, field), whole[order], field)


def test_weights_carry_gradient_to_gate_input_and_scale() -> None:
    x, w, _, _ = make_inputs(RouterCase(5, 32, 8, 2, 2, ""))
    x = x.double().float().requires_grad_()
    gate = w.weight.clone().requires_grad_()
    scale = torch.tensor([8.0], requires_grad=True)
    got = router(x, dataclasses.replace(w, weight=gate, scale=scale))
    (got.topk_weights.square().sum() + got.shared_weights[:, 0].sum()).backward()
    ids = got.topk_ids.long()

    x2, gate2 = (v.detach().double().requires_grad_() for v in (x, gate))
    s = (x2 @ gate2.T).sigmoid()
    chosen = torch.cat([s[:, :8].gather(1, ids), s[:, 8:]], 1)
    share = 8 * chosen / chosen.sum(1, keepdim=True)
    (share[:, :2].square().sum() + share[:, 2].sum()).backward()
    assert_close(x.grad, x2.grad, 1e-5)  # type: ignore[arg-type]
    assert_close(gate.grad, gate2.grad, 1e-5)  # type: ignore[arg-type]
    assert scale.grad is not None and float(scale.grad) != 0


def test_out_is_used() -> None:
    x, w, _, _ = make_inputs(CASES[2])
    want = router(x, w)
    out = Routing(*(torch.empty_like(getattr(want, field)) for field in FIELDS))
    assert router(x, w, out=out) is out
    for field in FIELDS:
        assert_bitwise_equal(getattr(out, field), getattr(want, field), field)


def test_bad_arguments_are_named() -> None:
    x, w, _, _ = make_inputs(CASES[2])
    with pytest.raises(ValueError, match=r"router: x must be \[T, 256\], got \[3, 255\]"):
        router(x[:, 1:], w)
    with pytest.raises(ValueError, match=r"top_k must be 1 to 16 \(experts\), got 17"):
        router(x, dataclasses.replace(w, top_k=17))
    with pytest.raises(TypeError, match=r"bias must be torch.float32"):
        router(x, dataclasses.replace(w, bias=w.bias.double()))
