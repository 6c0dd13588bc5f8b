"""Launches the kernel of rvq_dequantize."""

from __future__ import annotations

from torch import Tensor

from microturn.kernels.carry import line_arguments
from microturn.kernels.launch import launch
from microturn.kernels.rows import RowBatch
from microturn.kernels.rvq_dequantize.kernel import sum_books
from microturn.kernels.rvq_dequantize.reference import DequantizeWeights

BLOCK_D = 512
"""A frame of the released codec is one program: 128 threads, 16 bytes of each row for a thread."""


def rvq_dequantize_kernel(
    x: Tensor,
    weights: DequantizeWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `rvq_dequantize`."""
    t, books = x.shape
    _, size, dim = weights.folded.shape
    y = weights.tables.new_empty(t, dim) if out is None else out
    lines = None if rows is None else line_arguments(x, None, rows)
    # Without rows nothing is read through these.
    tensors = (x, x, x, x) if lines is None else lines.tensors[2:]
    launch(
        sum_books,
        (t, -(-dim // BLOCK_D)),
        x,
        weights.folded,
        y,
        *tensors,
        *((1, 1) if lines is None else lines.numbers),
        x.stride(0),
        x.stride(1),
        y.stride(0),
        Q=books,
        SIZE=size,
        DIM=dim,
        UP=1 if lines is None else lines.constants["UP"],
        HAS_ROWS=lines is not None,
        BLOCK_D=BLOCK_D,
        num_warps=4,
        pdl=True,
    )
    return y
