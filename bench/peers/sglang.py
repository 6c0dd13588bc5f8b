"""Experts by SGLang's Triton kernels, its own launcher and tables of configurations (0.5.9)."""

from __future__ import annotations

from typing import Any

from microturn.bench.peers.aligned import align_block_size
from microturn.bench.peers.common import compiled, library, on_gpu
from microturn.bench.peers.experts import Experts, Layer
from microturn.bench.providers.base import Call


def make(layer: Layer) -> Call:
    """Its compiled align is torch.compile's here; activation and sum are its own Triton kernels."""
    on_gpu(layer.x.device, "SGLang's fused_moe")
    return of_module(layer, library("sglang_fused_moe"))


def of_module(layer: Layer, theirs: Any) -> Call:
    x, device = layer.x, layer.x.device
    (t, a), experts = layer.ids.shape, layer.num_experts
    config, (down, _) = theirs.try_get_optimal_moe_config(
        layer.w13.shape, layer.w2.shape, a, None, t, return_down_config=True
    )
    down = dict(down or config)
    down.pop("USE_TMA", None)
    align = compiled(align_block_size, device)
    kind = theirs.dtype_of(x.dtype)

    def product(
        rows: Any, weight: Any, out: Any, blocks: Any, weigh: bool, top_k: int, how: Any
    ) -> None:
        theirs.invoke_fused_moe_kernel(
            rows,
            weight,
            None,
            out,
            None,
            None,
            None,
            layer.shares,
            layer.ids,
            *blocks,
            weigh,
            top_k,
            how,
            compute_type=kind,
            use_fp8_w8a8=False,
            use_int8_w8a8=False,
            use_int8_w8a16=False,
            use_int4_w4a16=False,
            per_channel_quant=False,
        )

    def call() -> Any:
        blocks = align(layer.ids, config["BLOCK_SIZE_M"], experts)
        hidden = x.new_empty(t * a, layer.w13.shape[1])
        product(x, layer.w13, hidden, blocks, False, a, config)
        act = x.new_empty(t * a, layer.w2.shape[2])
        theirs.act_and_mul_triton(hidden, act, config, layer.ids, blocks[1])
        choices = x.new_empty(t, a, x.shape[1])
        product(act, layer.w2, choices, blocks, True, 1, down)
        out = x.new_empty(x.shape)
        theirs.moe_sum_reduce_triton(choices, out, 1.0)
        return out

    return call


PROVIDERS = (Experts("sglang_fused_moe", make),)
