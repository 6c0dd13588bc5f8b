"""router in plain torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.kept import stamp
from microturn.kernels.router.work import ExpertWork, Room
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows, round_up

# torch rounds exp differently in whole vectors and in what is left over at the end of a tensor;
# tensors of a multiple of two AVX-512 registers leave nothing over.
VECTOR = 32


@dataclass(frozen=True)
class RouterWeights:
    """The gate of one layer.

    weight     [E + Sh, H]: the routed experts, then the shared ones
    bias       [E] fp32, added to the score for selection only
    top_k      A, routed experts a row goes to
    num_shared Sh, experts every row goes to
    scale      what the weights of a row sum to: a number or a tensor of one element
    """

    weight: Tensor
    bias: Tensor
    top_k: int
    num_shared: int
    scale: Tensor | float

    @property
    def num_experts(self) -> int:
        return int(self.weight.shape[0]) - self.num_shared

    @property
    def gate(self) -> Tensor:
        """weight in fp32, rows of zeros behind it up to whole vectors. Outside autograd made once,
        until the weight changes.
        """
        if torch.is_grad_enabled():
            return self._padded()
        key = stamp(self.weight)
        kept: tuple[tuple[int, int], Tensor] | None = vars(self).get("_gate")
        if kept is None or kept[0] != key:
            kept = vars(self)["_gate"] = key, self._padded()
        return kept[1]

    def _padded(self) -> Tensor:
        n = self.weight.shape[0]
        return F.pad(self.weight.float(), (0, 0, 0, round_up(n, VECTOR) - n))


@dataclass(frozen=True)
class Routing:
    """What the router decided for T rows.

    topk_ids       [T, A] int32, by falling selection score, ties to the lower id
    topk_weights   [T, A] fp32
    shared_weights [T, Sh] fp32
    work           the experts' tiles, where a kernel has listed them: spares the experts a launch
    room           where the experts' kernels are going to count what they list
    """

    topk_ids: Tensor
    topk_weights: Tensor
    shared_weights: Tensor
    work: ExpertWork | None = field(default=None, compare=False, repr=False)
    room: Room | None = field(default=None, compare=False, repr=False)

    @property
    def experts_hit(self) -> Tensor | None:
        """[1] int32, once the experts' kernels ran: distinct experts of rows that run. None where
        no kernel counts them.
        """
        counted = self.work or self.room
        return None if counted is None else counted.size[1:2]


def core(x: Tensor, weights: RouterWeights) -> Routing:
    """x [T, H] -> Routing, differentiable in x, weight and scale (selection has no gradient)."""
    e, a, shared = weights.num_experts, weights.top_k, weights.num_shared
    logits = matmul_rows(x if x.dtype == torch.float32 else x.float(), weights.gate)
    scores = torch.sigmoid(logits.detach() if logits.requires_grad else logits)
    scores = scores.narrow(1, 0, e) + weights.bias
    ids = scores.argsort(dim=-1, descending=True, stable=True).narrow(1, 0, a)
    logs = F.logsigmoid(logits)
    # In logs: sigmoids that all underflow would divide zero by zero.
    chosen = torch.cat((logs.gather(1, ids), logs.narrow(1, e, shared)), dim=1)
    share = torch.softmax(chosen, dim=-1) * weights.scale
    return Routing(ids.int(), share.narrow(1, 0, a), share.narrow(1, a, shared))


def router_reference(
    x: Tensor,
    weights: RouterWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Routing | None = None,
) -> Routing:
    """See `router`."""
    routing = core(x, weights)
    if out is None:
        return routing
    out.topk_ids.copy_(routing.topk_ids)
    out.topk_weights.copy_(routing.topk_weights)
    out.shared_weights.copy_(routing.shared_weights)
    return out
