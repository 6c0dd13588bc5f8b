"""rvq_quantize: the public function."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.checks import check_dtype, check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_quantize.reference import QuantizeWeights, rvq_quantize_reference

__all__ = ["QuantizeWeights", "rvq_quantize"]


def rvq_quantize(
    x: Tensor,
    weights: QuantizeWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t, q] = argmin over e of |r_q - tables[q, e]|, r_(q + 1) = r_q - tables[q, out[t, q]].

    r_0 = semantic @ x[t]; the acoustic books begin anew with r = acoustic @ x[t], from the same
    latent, not from what the semantic ones left over. Ties go to the lower code.

    x     [T, dim] fp32 (CPU)
    rows  rows of lines that do not run get code 0; None: all run
    state unused; the signature is the same for every op
    out   [T, Q] int64; allocated when None

    Source: spec/moshi-mimi.md 3.1. Raises ValueError on shapes, TypeError on dtypes.
    """
    op = "rvq_quantize"
    tables = weights.tables
    check_shape(op, "tables", tables, ("Q", "size", "d"))
    check_shape(op, "half_norms", weights.half_norms, tuple(tables.shape[:2]))
    check_shape(op, "semantic", weights.semantic, (tables.shape[2], "dim"))
    check_shape(op, "acoustic", weights.acoustic, tuple(weights.semantic.shape))
    check_shape(op, "x", x, ("T", weights.semantic.shape[1]))
    check_dtype(op, "tables", tables, x.dtype)
    if rows is not None:
        check_rows(op, rows, int(x.shape[0]))
    return pick(op, x.device, rvq_quantize_reference)(x, weights, state, rows, out=out)
