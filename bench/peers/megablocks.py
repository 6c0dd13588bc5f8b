"""Experts by megablocks' permutation kernels and grouped_gemm (megablocks 0.10, grouped_gemm 0.3):
what its dropless MoE does with `mlp_impl="grouped"`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from microturn.bench.peers.common import library, on_gpu
from microturn.bench.peers.experts import Experts, Layer
from microturn.bench.providers.base import Call


def make(layer: Layer) -> Call:
    """Gate and up are two matrices [E, I, H]; the second product takes w2 as [E, I, H]. The rows of
    each expert are counted on the host, as the library does it, so no graph can hold it.
    """
    on_gpu(layer.x.device, "megablocks")
    ops = library("megablocks.ops")
    gmm = library("grouped_gemm").ops.gmm
    half = layer.w13.shape[1] // 2
    gate, up = layer.w13[:, :half].contiguous(), layer.w13[:, half:].contiguous()
    down = layer.w2.transpose(1, 2).contiguous()
    a, experts = layer.ids.shape[1], layer.num_experts
    bits = max(1, (experts - 1).bit_length())
    ids, x = layer.ids.view(-1), layer.x
    shares = layer.shares.view(-1).to(x.dtype)

    def call() -> Any:
        bin_ids, indices = ops.sort(ids, bits)
        counts = ops.histogram(ids, experts)
        bins = ops.inclusive_cumsum(counts, 0).view(-1)
        rows = ops.gather(x, indices, bin_ids, bins, a)
        sizes = counts.cpu().to(torch.long)
        hidden = F.silu(gmm(rows, gate, sizes, trans_b=True)) * gmm(rows, up, sizes, trans_b=True)
        return ops.scatter(gmm(hidden, down, sizes), indices, bin_ids, shares, bins, a)

    return call


PROVIDERS = (Experts("megablocks", make),)
