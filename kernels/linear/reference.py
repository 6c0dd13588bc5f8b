"""linear in plain torch."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.quantized import Weight, plain
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


def core(x: Tensor, weights: Weight) -> Tensor:
    """x [..., K], weights [N, K] -> [..., N]."""
    return matmul_rows(x, plain(weights, x.dtype))


def linear_reference(
    x: Tensor,
    weights: Weight,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `linear`."""
    y = core(x, weights)
    return y if out is None else out.copy_(y)
