"""Dense MLP and mixture of experts. Rows of every w13 alternate gate and up, as released."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microturn.kernels.grouped_experts import ExpertInputs, ExpertWeights, grouped_experts
from microturn.kernels.kept import stamp
from microturn.kernels.quantized import Quantized, Weight
from microturn.kernels.router import RouterWeights, Routing, router
from microturn.kernels.rows import RowBatch
from microturn.model.inkling.config import TrunkConfig

DENSE_BLOCK = 2048
"""A dense MLP of a multiple of this width is cut into blocks of it."""


class DenseMLP(nn.Module):
    """global_scale * w2 @ swiglu(w13 @ x): w13 [2 * W, H], w2 [H, W], global_scale [1].

    The blocks of its width are experts that every row goes to, each weighted by global_scale.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.dense_width
        self.w13 = nn.Parameter(torch.empty(2 * width, hidden))
        self.w2 = nn.Parameter(torch.empty(hidden, width))
        self.global_scale = nn.Parameter(torch.empty(1))
        self._kept: tuple[Weight, Weight, list[int], ExpertWeights] | None = None

    def reset_parameters(self, generator: torch.Generator, output_gain: float) -> None:
        with torch.no_grad():
            self.w13.normal_(0, self.w13.shape[1] ** -0.5, generator=generator)
            self.w2.normal_(0, output_gain * self.w2.shape[1] ** -0.5, generator=generator)
            self.global_scale.fill_(1.0)

    def forward(self, x: Tensor, rows: RowBatch, chosen: list[Routing] | None = None) -> Tensor:
        """x [T, H], normed -> [T, H]. chosen: here nothing is."""
        weights = self._blocks()
        scale = self.global_scale.expand(x.shape[0], weights.shared_w13.shape[0])
        nobody = torch.empty(x.shape[0], 0, dtype=torch.int32, device=x.device)
        routing = Routing(nobody, scale[:, :0], scale)
        return grouped_experts(ExpertInputs(x, routing), weights, None, rows)

    def _blocks(self) -> ExpertWeights:
        """Views of both weights; outside autograd the same until one of them is another."""
        now = self.w13, self.w2
        key = [w.data_ptr() for w in now if isinstance(w, Tensor)]
        kept = None if torch.is_grad_enabled() else self._kept
        if kept and kept[0] is now[0] and kept[1] is now[1] and kept[2] == key:
            return kept[3]
        width = now[1].shape[1]
        block = DENSE_BLOCK if width % DENSE_BLOCK == 0 else width
        w13, w2 = _rows_in_blocks(now[0], 2 * block), _columns_in_blocks(now[1], block)
        made = ExpertWeights(w13[:0], w2[:0], w13, w2)
        if not torch.is_grad_enabled():
            self._kept = *now, key, made
        return made


def _rows_in_blocks(weight: Weight, block: int) -> Weight:
    """[n * block, K] as [n, block, K], a view."""
    if isinstance(weight, Tensor):
        return weight.view(-1, block, weight.shape[1])
    values, scales = weight.values, weight.scales
    return Quantized(
        values.view(-1, block, values.shape[1]), scales.view(-1, block, scales.shape[1])
    )


def _columns_in_blocks(weight: Weight, block: int) -> Weight:
    """[N, n * block] as [n, N, block], a view; 8 bits: block is whole blocks of scales, or all."""
    if isinstance(weight, Tensor):
        return weight.view(weight.shape[0], -1, block).transpose(0, 1)
    values, scales = weight.values, weight.scales
    n, count = values.shape[0], values.shape[1] // block
    return Quantized(
        values.view(n, count, block).transpose(0, 1), scales.view(n, count, -1).transpose(0, 1)
    )


class ExpertsMLP(nn.Module):
    """gate [E + Sh, H], bias [E] fp32 (selection only, no gradient), global_scale [1], and the
    tensors of ExpertWeights.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.hidden_size, config.expert_width
        experts, shared = config.num_experts, config.num_shared_experts
        self.gate = nn.Parameter(torch.empty(experts + shared, hidden))
        self.register_buffer("bias", torch.empty(experts, dtype=torch.float32))
        self.bias: Tensor
        self.global_scale = nn.Parameter(torch.empty(1))
        self.w13 = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, width))
        self.shared_w13 = nn.Parameter(torch.empty(shared, 2 * width, hidden))
        self.shared_w2 = nn.Parameter(torch.empty(shared, hidden, width))
        self._kept: tuple[tuple[int, int], Tensor] | None = None
        self._kept_router: RouterWeights | None = None
        self._kept_experts: ExpertWeights | None = None

    def reset_parameters(self, generator: torch.Generator, output_gain: float) -> None:
        config = self.config
        # A row adds top_k + shared independent outputs, each weighted about scale / their number.
        several = (config.top_k + config.num_shared_experts) ** 0.5 / config.route_scale
        down = output_gain * several * config.expert_width**-0.5
        with torch.no_grad():
            self.gate.normal_(0, config.hidden_size**-0.5, generator=generator)
            self.bias.zero_()
            self.global_scale.fill_(1.0)
            for up in (self.w13, self.shared_w13):
                up.normal_(0, config.hidden_size**-0.5, generator=generator)
            for w2 in (self.w2, self.shared_w2):
                w2.normal_(0, down, generator=generator)

    def _scale(self) -> Tensor:
        """[1]: route_scale * global_scale. Outside autograd multiplied once, until it changes;
        tensors made under inference_mode do not count their changes: load those before use.
        """
        scale, factor = self.global_scale, self.config.route_scale
        if torch.is_grad_enabled():
            return factor * scale
        key = stamp(scale)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, factor * scale
        return self._kept[1]

    def forward(self, x: Tensor, rows: RowBatch, chosen: list[Routing] | None = None) -> Tensor:
        """x [T, H], normed -> [T, H]. chosen: what the router decided is appended to it."""
        routing = router(x, self._router(), None, rows)
        if chosen is not None:
            chosen.append(routing)
        return grouped_experts(ExpertInputs(x, routing), self._experts(), None, rows)

    def _router(self) -> RouterWeights:
        """The same object until one of its tensors is another; in training always a new one."""
        gate, bias, scale = self.gate, self.bias, self._scale()
        kept = self._kept_router
        if kept and kept.weight is gate and kept.bias is bias and kept.scale is scale:
            return kept
        config = self.config
        made = RouterWeights(gate, bias, config.top_k, config.num_shared_experts, scale)
        if not torch.is_grad_enabled():
            self._kept_router = made
        return made

    def _experts(self) -> ExpertWeights:
        """The same object until one of its tensors is another."""
        now = self.w13, self.w2, self.shared_w13, self.shared_w2
        kept = self._kept_experts
        if kept is None or not kept.made_of(*now):
            kept = self._kept_experts = ExpertWeights(*now)
        return kept
