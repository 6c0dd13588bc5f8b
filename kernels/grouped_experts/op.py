"""grouped_experts: the public function."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from microturn.kernels.checks import Passed, check_dtype, check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.grouped_experts.reference import (
    ExpertInputs,
    ExpertWeights,
    grouped_experts_reference,
    swiglu,
)
from microturn.kernels.rows import RowBatch

__all__ = ["ExpertInputs", "ExpertWeights", "grouped_experts", "swiglu"]

_passed = Passed()


def grouped_experts(
    x: ExpertInputs,
    weights: ExpertWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t] = sum over a of topk_weights[t, a] * f_{topk_ids[t, a]}(x[t]) + sum over s of
    shared_weights[t, s] * g_s(x[t]), added in that order in fp32; f(x) = w2 @ (silu(w13[0::2] @ x)
    * (w13[1::2] @ x)), g likewise with the shared weights.

    x    ExpertInputs: x [T, H] and the router's Routing for it
    rows lines that do not run load no expert and give zeros; None runs every row
    state: unused; the signature is the same for every op
    out  [T, H], dtype of x; allocated when None

    Rows of w13 alternate gate and up, as released. A row's bits depend on nothing but that row, its
    routing and the weights, on a GPU inside each `regime`. A routing that a router's kernel made
    for this very x and these rows carries the list of experts hit; else it is made here. Source:
    spec/inkling.md 1.2, 1.6. Raises ValueError on shapes, TypeError on dtypes. Ids are not checked:
    that would wait for the device.
    """
    seen = _kind(x, weights)
    if seen not in _passed:
        _check(x, weights)
        _passed.add(seen)
    if rows is not None:
        check_rows("grouped_experts", rows, x.x.shape[0])
    run = pick("grouped_experts", x.x.device, grouped_experts_reference)
    return run(x, weights, state, rows, out=out)


def _kind(x: ExpertInputs, weights: ExpertWeights) -> Hashable:
    """All that the checks look at."""
    routing, w13, w2 = x.routing, weights.w13, weights.w2
    return (
        x.x.shape,
        x.x.dtype,
        routing.topk_ids.shape,
        routing.topk_weights.shape,
        routing.shared_weights.shape,
        w13.shape,
        w2.shape,
        weights.shared_w13.shape,
        weights.shared_w2.shape,
        getattr(w13, "dtype", None),
        getattr(w2, "dtype", None),
        getattr(weights.shared_w13, "dtype", None),
        getattr(weights.shared_w2, "dtype", None),
    )


def _check(x: ExpertInputs, weights: ExpertWeights) -> None:
    t, h = x.x.shape
    routing = x.routing
    num_experts, twice, _ = weights.w13.shape
    shared = weights.shared_w13.shape[0]
    check_shape("grouped_experts", "topk_ids", routing.topk_ids, (t, "A"))
    check_shape("grouped_experts", "topk_weights", routing.topk_weights, routing.topk_ids.shape)
    check_shape("grouped_experts", "shared_weights", routing.shared_weights, (t, shared))
    check_shape("grouped_experts", "w13", weights.w13, (num_experts, "2 * I", h))
    check_shape("grouped_experts", "w2", weights.w2, (num_experts, h, twice // 2))
    check_shape("grouped_experts", "shared_w13", weights.shared_w13, (shared, twice, h))
    check_shape("grouped_experts", "shared_w2", weights.shared_w2, (shared, h, twice // 2))
    for name in ("w13", "w2", "shared_w13", "shared_w2"):
        weight = getattr(weights, name)
        if isinstance(weight, Tensor):
            check_dtype("grouped_experts", name, weight, x.x.dtype)
    if routing.topk_ids.shape[1] + shared == 0:
        raise ValueError("grouped_experts: rows have no expert at all, neither routed nor shared")
