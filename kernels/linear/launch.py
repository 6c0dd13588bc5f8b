"""Launches the kernel of linear."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

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
    """See `linear`. Raises ValueError where a row of weights is no multiple of 16 bytes."""
    (t, k), n = x.shape, weights.shape[0]
    values = weights.values if isinstance(weights, Quantized) else weights
    if values.stride(1) != 1 or values.stride(0) * values.element_size() % 16:
        raise ValueError(
            f"linear: the kernel wants rows of weights that are dense and multiples of 16 bytes "
            f"apart, got strides {values.stride()} of {values.element_size()} bytes; pad the inputs"
        )
    fp8, scales = isinstance(weights, Quantized), values
    if isinstance(weights, Quantized):
        # Two to an element, as a thread of the matrix unit takes them.
        values, scales = values.view(torch.int16), weights.scales.view(torch.uint8)
    y = x.new_empty(t, n) if out is None else out
    config = choose("linear", device=device_name(x.device), fp8=fp8, T=t, N=n, K=k)
    split = config["SPLIT"]
    tiles_n, tiles_t = -(-n // config["BLOCK_N"]), -(-t // config["BLOCK_T"])
    if split > 1:
        parts = torch.empty(split, t, n, dtype=torch.float32, device=x.device)
        counts = zeroed("linear", 1 << 16, x.device)
    else:
        parts = counts = y
    box = [1, config["BLOCK_N"], config["BLOCK_K"] // (2 if fp8 else 1)]
    matrix = values[None]
    launch(
        linear_tiles,
        (tiles_n * split, tiles_t),
        x,
        TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), box),
        values,
        scales,
        y,
        parts,
        counts,
        t,
        n,
        x.stride(0),
        values.stride(0),
        y.stride(0),
        K=k,
        K_BLOCKS=scales.shape[-1],
        FP8=fp8,
        AHEAD=4,
        pdl=True,
        **config,
    )
    return y
