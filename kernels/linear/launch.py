"""Launches the kernel of linear."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.configs import choose
from microturn.kernels.launch import device_name, launch, zeroed
from microturn.kernels.linear.kernel import linear_tiles
from microturn.kernels.quantized import Quantized, Weight
from microturn.kernels.rows import RowBatch


def linear_kernel(
    x: Tensor,
    weights: Weight,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `linear`."""
    fp8 = isinstance(weights, Quantized)
    values = weights.values if isinstance(weights, Quantized) else weights
    scales = weights.scales.view(torch.uint8) if isinstance(weights, Quantized) else values
    (t, k), n = x.shape, values.shape[0]
    y = x.new_empty(t, n) if out is None else out
    config = choose("linear", device=device_name(x.device), fp8=fp8, T=t, N=n, K=k)
    split = config["SPLIT"]
    tiles_n, tiles_t = -(-n // config["BLOCK_N"]), -(-t // config["BLOCK_T"])
    if split > 1:
        parts = torch.empty(split, t, n, dtype=torch.float32, device=x.device)
        counts = zeroed("linear", 1 << 16, x.device)
    else:
        parts = counts = y
    launch(
        linear_tiles,
        (tiles_n * split, tiles_t),
        x,
        values,
        scales,
        y,
        parts,
        counts,
        t,
        n,
        x.stride(0),
        y.stride(0),
        K=k,
        K_BLOCKS=scales.shape[-1],
        FP8=fp8,
        pdl=True,
        **config,
    )
    return y
