"""Experts that are all used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from microturn.kernels.router import RouterWeights, router
from microturn.model.inkling.mlp import ExpertsMLP


class Balance:
    """Evens out the experts: biases of those that got less than their share rise (no gradient)."""

    def __init__(self, model: nn.Module) -> None:
        self._loads: dict[ExpertsMLP, Tensor] = {}
        for module in model.modules():
            if isinstance(module, ExpertsMLP):
                module.register_forward_pre_hook(self._count)

    @torch.no_grad()
    def _count(self, mlp: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(mlp, ExpertsMLP)
        config = mlp.config
        gate = RouterWeights(mlp.gate, mlp.bias, config.top_k, config.num_shared_experts, 1.0)
        ids = router(inputs[0], gate).topk_ids
        self._loads[mlp] = torch.bincount(ids.flatten().long(), minlength=len(mlp.bias)).float()

    def update(self, rate: float) -> float:
        """After a step; gives the largest load over the mean, of all layers."""
        worst = 0.0
        for mlp, load in self._loads.items():
            mlp.bias += rate * torch.sign(load.mean() - load)
            worst = max(worst, float(load.max() / load.mean()))
        return worst
