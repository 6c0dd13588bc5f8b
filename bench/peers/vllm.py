"""Experts by vLLM's Triton kernel, its own launcher and tables of configurations (0.19.0)."""

from __future__ import annotations

from typing import Any

import torch

from microturn.bench.peers.aligned import align_block_size
from microturn.bench.peers.common import compiled, library, on_gpu
from microturn.bench.peers.experts import Experts, Layer, silu_and_mul
from microturn.bench.providers.base import Call

SPARSITY = 4
"""vLLM's: with fewer choices than experts by this factor, each choice is a block of its own."""


def make(layer: Layer) -> Call:
    """Its compiled align, activation and sum are torch.compile's here."""
    on_gpu(layer.x.device, "vLLM's fused_moe")
    return of_module(layer, library("vllm_fused_moe"))


def of_module(layer: Layer, theirs: Any) -> Call:
    x, device = layer.x, layer.x.device
    (t, a), experts = layer.ids.shape, layer.num_experts
    config = dict(theirs.try_get_optimal_moe_config(layer.w13.shape, layer.w2.shape, a, None, t))
    block = config["BLOCK_SIZE_M"]
    naive = t * a * SPARSITY <= experts
    align = compiled(align_block_size, device)
    act = compiled(silu_and_mul, device)
    total = compiled(lambda choices: choices.sum(1), device)
    kind = theirs.dtype_of(x.dtype)
    counted = torch.full((1,), t * a * block, dtype=torch.int32, device=device)

    def product(rows: Any, weight: Any, out: Any, blocks: Any, weigh: bool, top_k: int) -> None:
        theirs.invoke_fused_moe_triton_kernel(
            rows,
            weight,
            out,
            None,
            None,
            layer.shares if weigh else None,
            *blocks,
            weigh,
            top_k,
            config,
            compute_type=kind,
            use_fp8_w8a8=False,
            use_int8_w8a8=False,
            use_int8_w8a16=False,
            use_int4_w4a16=False,
            per_channel_quant=False,
        )

    def call() -> Any:
        if naive:
            blocks: Any = (None, layer.ids.view(-1), counted)
        else:
            blocks = align(layer.ids, block, experts)
        hidden = x.new_empty(t, a, layer.w13.shape[1])
        product(x, layer.w13, hidden, blocks, False, a)
        out = x.new_empty(t, a, x.shape[1])
        product(act(hidden.view(t * a, -1)), layer.w2, out, blocks, True, 1)
        return total(out)

    return call


PROVIDERS = (Experts("vllm_fused_moe", make),)
