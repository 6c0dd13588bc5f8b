"""rvq_dequantize: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.checks import check_dtype, check_rows, check_shape
from microturn.kernels.dispatch import pick
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_dequantize.reference import (
    DequantizeWeights,
    rvq_dequantize_reference,
)

__all__ = ["DequantizeWeights", "rvq_dequantize"]


def rvq_dequantize(
    x: Tensor,
    weights: DequantizeWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """out[t] = semantic @ (sum of tables[q, x[t, q]], q < num_semantic) + acoustic @ (the sum over
    the other q).

    x     [T, q] int64 codes, num_semantic <= q <= Q: the first q books (a codec may run on fewer
          than it has)
    rows  rows of lines that do not run are zeros, their codes are not looked at; None: all run
    state unused; the signature is the same for every op
    out   [T, dim], dtype of the tables; allocated when None

    Source: spec/moshi-mimi.md 3.1. Raises ValueError on shapes, on a CPU also on codes outside
    0..size - 1 (a GPU is not waited for: there such a code reads the nearest row), TypeError on
    dtypes.
    """
    op = "rvq_dequantize"
    tables = weights.tables
    check_shape(op, "tables", tables, ("Q", "size", "d"))
    check_shape(op, "semantic", weights.semantic, ("dim", tables.shape[2]))
    check_shape(op, "acoustic", weights.acoustic, (weights.semantic.shape[0], tables.shape[2]))
    check_shape(op, "codes", x, ("T", "q"))
    check_dtype(op, "codes", x, torch.int64)
    if not weights.num_semantic <= x.shape[1] <= tables.shape[0]:
        raise ValueError(
            f"{op}: codes must have {weights.num_semantic} to {tables.shape[0]} books, "
            f"got {x.shape[1]}"
        )
    if rows is not None:
        check_rows(op, rows, int(x.shape[0]))
    return pick(op, x.device, rvq_dequantize_reference)(x, weights, state, rows, out=out)
