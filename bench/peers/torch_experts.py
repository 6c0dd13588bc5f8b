"""Experts by torch's grouped matmul: sort, gather, two products, weigh and add."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from microturn.bench.peers.common import compiled
from microturn.bench.peers.experts import Experts, Layer, combine, offsets, silu_and_mul
from microturn.bench.providers.base import Call, Unavailable


def _grouped_mm() -> Any:
    found = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if found is None:
        raise Unavailable(f"torch {torch.__version__} has no grouped_mm")
    return found


def make(layer: Layer) -> Call:
    """w13 and w2 are given as they lie: [E, K, N] with K dense."""
    grouped_mm = _grouped_mm()
    w13, w2 = layer.w13.transpose(1, 2), layer.w2.transpose(1, 2)
    t, a = layer.ids.shape
    act = compiled(silu_and_mul, layer.x.device)
    total = compiled(combine, layer.x.device)

    def call() -> Any:
        ids, order = layer.ids.view(-1).sort(stable=True)
        ends = offsets(ids, layer.num_experts)
        hidden = act(grouped_mm(layer.x[order // a], w13, offs=ends))
        out = grouped_mm(hidden, w2, offs=ends)
        choices = torch.empty_like(out).index_copy_(0, order, out)
        return total(choices.view(t, a, -1), layer.shares, layer.x.dtype)

    return call


def _aligned(case: Any) -> bool:
    """grouped_mm wants rows of whole 16 bytes."""
    return bool(case.H % 8 == 0 and case.I % 8 == 0)


PROVIDERS = (Experts("torch_grouped_mm", make, ("bf16", "fp32"), _aligned),)
