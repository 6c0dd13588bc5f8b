"""Experts and RMS norm by Liger's Triton kernels (liger-kernel 0.8.5)."""

from __future__ import annotations

from typing import Any

import torch

from microturn.bench.peers.common import library, on_gpu
from microturn.bench.peers.experts import Experts, Layer
from microturn.bench.providers.base import Call
from microturn.kernels.registry import Case, OpInputs


def make(layer: Layer) -> Call:
    """gate_up_proj [E, 2 * I, H] gate first, down_proj [E, H, I], ids int32: as in our layer. Waits
    for the device once a call (it asks how many tiles there are), so no graph can hold it.
    """
    on_gpu(layer.x.device, "Liger")
    run = library("liger_kernel.ops.fused_moe").LigerFusedMoEFunction.apply
    return lambda: run(layer.x, layer.w13, layer.w2, layer.ids, layer.shares)


class LigerNorm:
    name = "liger_norm"

    def supports(self, op: str, case: Case, dtype: str) -> bool:
        return op == "rms_norm" and dtype == "bf16"

    def prepare(
        self, op: str, case: Case, dtype: str, inputs: OpInputs, device: torch.device
    ) -> Call:
        on_gpu(device, "Liger")
        run = library("liger_kernel.ops.rms_norm").rms_norm_forward
        x, gain = inputs.x.contiguous(), inputs.weights.gain.to(inputs.x.dtype)
        rows: Any = x.view(-1, x.shape[-1])
        eps = inputs.weights.eps
        return lambda: run(rows, gain, eps, 0.0, "llama", None)[0].view(x.shape)


PROVIDERS = (Experts("liger", make), LigerNorm())
