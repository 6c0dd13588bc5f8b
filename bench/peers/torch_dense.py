"""Dense layers, norm and router by torch: cuBLAS, F.rms_norm, torch.compile."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.bench.peers.common import compiled
from microturn.bench.providers.base import Call
from microturn.kernels.registry import Case, OpInputs


def _linear(inputs: OpInputs, device: torch.device) -> Call:
    x, weight = inputs.x, inputs.weights
    return lambda: F.linear(x, weight)


def _rms_norm(inputs: OpInputs, device: torch.device) -> Call:
    x = inputs.x
    gain, eps = inputs.weights.gain.to(x.dtype), inputs.weights.eps
    return lambda: F.rms_norm(x, gain.shape, gain, eps)


def _router(inputs: OpInputs, device: torch.device) -> Call:
    """The gate is kept in fp32, as models keep it."""
    x, weights = inputs.x, inputs.weights
    gate, bias, top_k = weights.weight.float(), weights.bias, weights.top_k
    experts, scale = weights.num_experts, weights.scale

    def route(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.sigmoid(F.linear(x.float(), gate))
        ids = (scores[:, :experts] + bias).topk(top_k, dim=-1).indices
        chosen = torch.cat([scores[:, :experts].gather(1, ids), scores[:, experts:]], 1)
        share = chosen / chosen.sum(-1, keepdim=True) * scale
        return ids.int(), share[:, :top_k], share[:, top_k:]

    run = compiled(route, device)
    return lambda: run(x)


_OPS = {"linear": _linear, "rms_norm": _rms_norm, "router": _router}


class TorchDense:
    name = "torch"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op in _OPS and dtype in ("fp32", "fp16", "bf16")

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        return _OPS[op](inputs, device)


PROVIDERS: tuple[Any, ...] = (TorchDense(),)
