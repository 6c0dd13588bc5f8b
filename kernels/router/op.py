"""router: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.checks import Passed, check_dtype, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.router.reference import RouterWeights, Routing, router_reference
from microturn.kernels.rows import RowBatch

__all__ = ["RouterWeights", "Routing", "router"]

_passed = Passed()


def router(
    x: Tensor,
    weights: RouterWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Routing | None = None,
) -> Routing:
    """l = x @ weight.T in fp32; ids = top_k of sigmoid(l[:E]) + bias; w_i = scale * sigmoid(l_i)
    / sum of sigmoid(l_j) over the top_k chosen and the Sh shared experts.

    x   [T, H], any float dtype
    out a Routing written in place; allocated when None
    state, rows: unused; every row is routed, whoever reads the result skips the idle ones

    The bias takes part in the selection only. A row's bits depend on nothing but that row and the
    weights. Source: spec/inkling.md 1.2. Raises ValueError on shapes or a top_k that does not fit,
    TypeError when bias is not fp32.
    """
    experts = weights.num_experts
    gate, bias = weights.weight, weights.bias
    seen = x.dim(), x.shape[-1], gate.shape, bias.shape, bias.dtype, experts, weights.top_k
    if seen not in _passed:
        check_shape("router", "x", x, ("T", gate.shape[-1]))
        check_shape("router", "weight", gate, ("E + Sh", "H"))
        check_shape("router", "bias", bias, (experts,))
        check_dtype("router", "bias", bias, torch.float32)
        if not 1 <= weights.top_k <= experts:
            raise ValueError(f"router: top_k must be 1 to {experts} (experts), got {weights.top_k}")
        _passed.add(seen)
    return pick("router", x.device, router_reference)(x, weights, state, rows, out=out)
