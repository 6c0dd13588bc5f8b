"""linear: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.checks import Passed, check_dtype, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.linear.reference import linear_reference
from microturn.kernels.quantized import Weight
from microturn.kernels.rows import RowBatch

_passed = Passed()


def linear(
    x: Tensor,
    weights: Weight,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t, n] = sum over k of x[t, k] * weights[n, k]; every dense matmul of a tick goes through
    here.

    x       [T, K], any float dtype; sums are fp32
    weights [N, K], dtype of x, or Quantized (8 bits; x and the products stay in x's dtype)
    state, rows: unused; the signature is the same for every op
    out     [T, N], any float dtype; allocated in that of x when None

    A row's bits depend on nothing but that row and the weights (DESIGN 2): on a GPU K is cut into
    the same blocks, added in the same order, for every T.
    Raises ValueError on shapes, TypeError on dtypes.
    """
    seen = x.dim(), x.shape[-1], x.dtype, weights.shape, getattr(weights, "dtype", None)
    if seen not in _passed:
        check_shape("linear", "x", x, ("T", weights.shape[-1]))
        check_shape("linear", "weights", weights, ("N", "K"))
        if isinstance(weights, Tensor):
            check_dtype("linear", "weights", weights, x.dtype)
        _passed.add(seen)
    return pick("linear", x.device, linear_reference)(x, weights, state, rows, out=out)
