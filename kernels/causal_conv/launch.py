"""Launches the kernel of causal_conv."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import check_tail_dtype, line_arguments
from microturn.kernels.causal_conv.kernel import conv_tiles
from microturn.kernels.causal_conv.reference import ConvWeights
from microturn.kernels.configs import Config, choose
from microturn.kernels.launch import device_name, launch, zeroed
from microturn.kernels.rows import RowBatch

TAIL_BLOCK = 1024
COUNTERS = 1 << 16


def causal_conv_kernel(
    x: Tensor,
    weights: ConvWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `causal_conv`."""
    y = out
    if y is None:
        y = weights.weight.new_empty(x.shape[0] // weights.stride, weights.weight.shape[0])
    launch_conv(x, weights, state, rows, y)
    return y


def launch_conv(
    x: Tensor,
    weights: ConvWeights,
    state: Twice | None,
    rows: RowBatch | None,
    y: Tensor,
    *,
    elu_out: bool = False,
    skip: Tensor | None = None,
) -> None:
    """y [T / stride, Cout] = the convolution; elu_out: ELU of it; skip [T / stride, Cout] is added
    last.
    """
    check_tail_dtype("causal_conv", x, state)
    n, taps, c = weights.weight.shape
    t = int(y.shape[0])
    config = parameters(n, taps, c, t, device_name(x.device))
    split = config["SPLIT"]
    tiles_n, tiles_t = -(-n // config["BLOCK_N"]), -(-t // config["BLOCK_T"])
    tiles = tiles_n * tiles_t * split
    parts = counts = y
    if split > 1:
        parts = torch.empty(split, t, n, dtype=torch.float32, device=x.device)
        counts = zeroed("causal_conv", COUNTERS, x.device)
    lines = line_arguments(x, state, rows)
    launch(
        conv_tiles,
        (tiles + (lines.num_lines if state is not None else 0) if t else 0,),
        x,
        weights.weight,
        y if weights.bias is None else weights.bias,
        y if skip is None else skip,
        y,
        *lines.tensors,
        parts,
        counts,
        *lines.numbers,
        t,
        tiles,
        x.stride(0),
        0 if skip is None else skip.stride(0),
        y.stride(0),
        *lines.strides,
        N=n,
        C=c,
        TAPS=taps,
        STRIDE=weights.stride,
        ELU=weights.elu,
        ELU_OUT=elu_out,
        REPLICATE=weights.pad == "replicate",
        HAS_BIAS=weights.bias is not None,
        SKIP=skip is not None,
        BLOCK_TAIL=TAIL_BLOCK,
        pdl=True,
        **lines.constants,
        **config,
    )


def parameters(n: int, taps: int, c: int, t: int, device: str) -> Config:
    """Launch parameters for t rows out of windows of `taps` rows of c channels to n.

    Everything that a row's bits depend on (BLOCK_K, SPLIT, which side the rows stand on) follows
    from n, taps and c.
    """
    config = choose("causal_conv", device=device, T=t, N=n, K=taps * c)
    config["BLOCK_K"] = block_k(c, taps * c, config["BLOCK_K"])
    return config


def block_k(c: int, width: int, limit: int) -> int:
    """The largest block, at most `limit`, that divides the channels; where there is none of at
    least 16, a block across the taps.
    """
    divisor = c & -c
    return min(divisor, limit) if divisor >= 16 else max(16, min(limit, power_of_two(width)))


def power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()
