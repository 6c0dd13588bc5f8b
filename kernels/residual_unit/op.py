"""residual_unit: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import check_carry
from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.residual_unit.reference import (
    ResidualUnitWeights,
    residual_unit_reference,
)
from microturn.kernels.rows import RowBatch

__all__ = ["ResidualUnitWeights", "residual_unit"]


def residual_unit(
    x: Tensor,
    weights: ResidualUnitWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out = x + outer(ELU(inner(ELU(x)))), inner a causal convolution over K rows, outer over one.

    x       [T, C] fp32 (CPU), packed lines
    state   Twice of [K - 1, C] a slot: the last inputs of `inner`; None: whole sequences
    rows    at the rate of x; None only without state: x is one whole sequence
    out     [T, C], dtype of x; allocated when None. Rows of lines that do not run are zeros

    Source: spec/moshi-mimi.md 3.1. Raises ValueError on shapes and strides, TypeError on dtypes.
    """
    inner, outer = weights.inner, weights.outer
    check_shape("residual_unit", "inner.weight", inner.weight, ("hidden", "K", "C"))
    check_shape("residual_unit", "x", x, ("T", inner.weight.shape[2]))
    check_shape(
        "residual_unit", "outer.weight", outer.weight, (x.shape[1], 1, inner.weight.shape[0])
    )
    check_dtype("residual_unit", "inner.weight", inner.weight, x.dtype)
    check_dtype("residual_unit", "outer.weight", outer.weight, x.dtype)
    if not (inner.stride == outer.stride == 1 and inner.elu and outer.elu):
        raise ValueError("residual_unit: both convolutions must have stride 1 and elu=True")
    check_carry("residual_unit", x, state, rows, weights.tail_shape if inner.history else None)
    return pick("residual_unit", x.device, residual_unit_reference)(
        x, weights, state, rows, out=out
    )
