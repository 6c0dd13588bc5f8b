"""Launches the kernels of conv_transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import line_arguments
from microturn.kernels.causal_conv.launch import COUNTERS, block_k, power_of_two
from microturn.kernels.configs import Config, choose
from microturn.kernels.conv_transpose.kernel import transpose_channels, transpose_tiles
from microturn.kernels.conv_transpose.reference import ConvTransposeWeights
from microturn.kernels.launch import device_name, launch, zeroed
from microturn.kernels.rows import RowBatch


def conv_transpose_kernel(
    x: Tensor,
    weights: ConvTransposeWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `conv_transpose`."""
    t = int(x.shape[0])
    n, stride, overlap = weights.width, weights.stride, weights.overlap
    y = x.new_empty(t * stride, n) if out is None else out
    lines = line_arguments(x, state, rows)
    total = t + (lines.num_lines * (overlap - 1) if state is not None else 0)
    depthwise = weights.weight.dim() == 2
    config = parameters(weights, total, device_name(x.device))
    tensors = (x, weights.weight, y if weights.bias is None else weights.bias, y, *lines.tensors)
    numbers = (*lines.numbers, total, x.stride(0), y.stride(0), *lines.strides)
    constants = {
        "N": n,
        "STRIDE": stride,
        "OVERLAP": overlap,
        "ELU": weights.elu,
        "HAS_BIAS": weights.bias is not None,
        **lines.constants,
        **config,
    }
    tiles_t = -(-total // config["BLOCK_T"]) if t else 0
    if depthwise:
        grid = (tiles_t, -(-n // config["BLOCK_N"]))
        launch(transpose_channels, grid, *tensors, *numbers, pdl=True, **constants)
        return y
    split = config["SPLIT"]
    tiles_n = -(-stride * n // config["BLOCK_N"])
    parts = counts = y
    if split > 1:
        parts = torch.empty(split, total, stride * n, dtype=torch.float32, device=x.device)
        counts = zeroed("conv_transpose", COUNTERS, x.device)
    launch(
        transpose_tiles,
        (tiles_n * tiles_t * split,),
        *tensors,
        parts,
        counts,
        *numbers,
        C=weights.width_in,
        pdl=True,
        **constants,
    )
    return y


def parameters(weights: ConvTransposeWeights, rows: int, device: str) -> Config:
    """Launch parameters for so many rows, those that lines end with included.

    Everything that a row's bits depend on (BLOCK_K, SPLIT) follows from the weights.
    """
    n, c = weights.width, weights.width_in
    if weights.weight.dim() == 2:
        config = choose("conv_transpose", "transpose_channels", device, T=rows)
        config["BLOCK_N"] = min(config["BLOCK_N"], power_of_two(n))
        return config
    config = choose("conv_transpose", "transpose_tiles", device, T=rows, C=c)
    config["BLOCK_K"] = block_k(c, c, config["BLOCK_K"])
    blocks = -(-c // config["BLOCK_K"])
    # A split may not hold parts of two inputs: a cut between them would change the order of sums.
    if config["SPLIT"] > 1:
        config["SPLIT"] = weights.overlap if blocks > 1 else 1
    return config
