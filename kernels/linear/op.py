"""linear: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.checks import check_dtype, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.linear.reference import linear_reference
from microturn.kernels.rows import RowBatch


def linear(
    x: Tensor,
    weights: Tensor,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t, n] = sum over k of x[t, k] * weights[n, k]; every dense matmul of a tick goes through
    here.

    x       [T, K] fp32 (CPU)
    weights [N, K], dtype of x
    state, rows: unused; the signature is the same for every op
    out     [T, N], dtype of x; allocated when None

    A row's bits depend on nothing but that row and the weights (DESIGN 2).
    Raises ValueError on shapes, TypeError on dtypes.
    """
    check_shape("linear", "x", x, ("T", weights.shape[-1]))
    check_shape("linear", "weights", weights, ("N", "K"))
    check_dtype("linear", "weights", weights, x.dtype)
    return pick("linear", x.device, linear_reference)(x, weights, state, rows, out=out)
