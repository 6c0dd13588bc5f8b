"""Launches the kernels of residual_unit: one launch, or one for each convolution where a single
program would have to stream all of a wide unit's weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import check_tail_dtype, line_arguments
from microturn.kernels.causal_conv.launch import (
    TAIL_BLOCK,
    block_k,
    launch_conv,
    power_of_two,
)
from microturn.kernels.configs import Config, choose
from microturn.kernels.launch import device_name, launch
from microturn.kernels.residual_unit.kernel import unit_tiles
from microturn.kernels.residual_unit.reference import ResidualUnitWeights
from microturn.kernels.rows import RowBatch

MMA_ROWS = 64
"""The M side of a warpgroup's product; narrower ones take another way, where Triton 3.6 fails to
compile.
"""


def residual_unit_kernel(
    x: Tensor,
    weights: ResidualUnitWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `residual_unit`."""
    y = torch.empty_like(x) if out is None else out
    config = choose("residual_unit", device=device_name(x.device), C=int(x.shape[1]))
    if config.pop("FUSED"):
        _fused(x, weights, state, rows, y, config)
    else:
        _apart(x, weights, state, rows, y)
    return y


def _apart(
    x: Tensor, weights: ResidualUnitWeights, state: Twice | None, rows: RowBatch | None, y: Tensor
) -> None:
    """Two launches; the hidden rows pass through memory after their ELU."""
    hidden = x.new_empty(x.shape[0], weights.inner.weight.shape[0])
    launch_conv(x, weights.inner, state, rows, hidden, elu_out=True)
    launch_conv(hidden, weights.outer.without_elu, None, rows, y, skip=x)


def _fused(
    x: Tensor,
    weights: ResidualUnitWeights,
    state: Twice | None,
    rows: RowBatch | None,
    y: Tensor,
    config: Config,
) -> None:
    check_tail_dtype("residual_unit", x, state)
    inner, outer = weights.inner, weights.outer
    h, taps, c = inner.weight.shape
    t = int(x.shape[0])
    config["BLOCK_K"] = block_k(c, taps * c, config["BLOCK_K"])
    tiles = -(-t // config["BLOCK_T"])
    lines = line_arguments(x, state, rows)
    launch(
        unit_tiles,
        (tiles + (lines.num_lines if state is not None else 0) if t else 0,),
        x,
        inner.weight,
        y if inner.bias is None else inner.bias,
        outer.weight,
        y if outer.bias is None else outer.bias,
        y,
        *lines.tensors,
        *lines.numbers,
        t,
        tiles,
        x.stride(0),
        y.stride(0),
        *lines.strides,
        C=c,
        H=h,
        TAPS=taps,
        HAS_INNER_BIAS=inner.bias is not None,
        HAS_OUTER_BIAS=outer.bias is not None,
        BLOCK_H=max(MMA_ROWS, power_of_two(h)),
        BLOCK_TAIL=TAIL_BLOCK,
        pdl=True,
        **lines.constants,
        **config,
    )
