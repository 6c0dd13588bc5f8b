"""Experts as every peer takes them: shared experts are routed ones that each row chooses, gate and
up are halves, not alternating rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.bench.providers.base import Call, Unavailable
from microturn.kernels.quantized import Weight, plain
from microturn.kernels.registry import Case, OpInputs

OP = "grouped_experts"


class Layer(NamedTuple):
    """x [T, H], ids [T, A] int32, shares [T, A] fp32, w13 [E, 2 * I, H] (gate, then up),
    w2 [E, H, I]; E and A count the shared experts, which come last.
    """

    x: Tensor
    ids: Tensor
    shares: Tensor
    w13: Tensor
    w2: Tensor

    @property
    def num_experts(self) -> int:
        return int(self.w13.shape[0])


def layer(inputs: OpInputs) -> Layer:
    """Raises Unavailable where some lines do not run."""
    x, weights, _, rows = inputs
    if rows is not None and int(rows.run_rows.shape[0]) != rows.num_rows:
        raise Unavailable("peers run every row; here some lines do not run")
    t, dtype = x.x.shape[0], x.x.dtype
    routing = x.routing
    routed, shared = weights.w13.shape[0], weights.shared_w13.shape[0]
    extra = torch.arange(routed, routed + shared, dtype=torch.int32, device=x.x.device)
    ids = torch.cat([routing.topk_ids.int(), extra.expand(t, shared)], 1).contiguous()
    shares = torch.cat([routing.topk_weights, routing.shared_weights], 1).contiguous()

    def both(first: Weight, second: Weight, halves: bool) -> Tensor:
        n, k = first.shape[1:]
        out = torch.empty(routed + shared, n, k, dtype=dtype, device=x.x.device)
        for e in range(routed + shared):  # one by one: no second copy of all of them
            of = plain(first[e] if e < routed else second[e - routed], dtype)
            out[e] = of.view(n // 2, 2, k).transpose(0, 1).reshape(n, k) if halves else of
        return out

    w13 = both(weights.w13, weights.shared_w13, True)
    w2 = both(weights.w2, weights.shared_w2, False)
    return Layer(x.x, ids, shares, w13, w2)


class Experts:
    """A provider of grouped experts; `make` gives a call for a layer."""

    def __init__(
        self,
        name: str,
        make: Callable[[Layer], Call],
        dtypes: tuple[str, ...] = ("bf16",),
        accept: Callable[[Any], bool] = lambda case: True,
    ) -> None:
        self.name, self._make, self._dtypes, self._accept = name, make, dtypes, accept

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        if op != OP or dtype not in self._dtypes or not getattr(case, "T", 1):
            return False
        return self._accept(case)

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        return self._make(layer(inputs))


def silu_and_mul(h: Tensor) -> Tensor:
    """[..., 2 * I], gate then up -> [..., I]."""
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def offsets(sorted_ids: Tensor, num_experts: int) -> Tensor:
    """Where each expert's run ends, [E] int32, from ids in order; no host sync."""
    experts = torch.arange(num_experts, device=sorted_ids.device, dtype=sorted_ids.dtype)
    return torch.searchsorted(sorted_ids, experts, right=True).int()


def combine(choices: Tensor, shares: Tensor, dtype: torch.dtype) -> Tensor:
    """choices [T, A, H], shares [T, A] -> [T, H], summed in fp32."""
    return torch.einsum("tah,ta->th", choices.float(), shares).to(dtype)
