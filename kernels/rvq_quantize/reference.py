"""rvq_quantize in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


@dataclass(frozen=True)
class QuantizeWeights:
    """tables [Q, size, d]; half_norms [Q, size]: half the squared length of each row (see
    `half_norms`), so that nobody computes it every tick.

    The first num_semantic books quantise semantic [d, dim] @ latent, the others acoustic [d, dim]
    @ latent.
    """

    tables: Tensor
    half_norms: Tensor
    semantic: Tensor
    acoustic: Tensor
    num_semantic: int = 1


def half_norms(tables: Tensor) -> Tensor:
    """[..., size, d] -> [..., size]."""
    return tables.square().sum(-1) / 2


def core(x: Tensor, weights: QuantizeWeights) -> Tensor:
    """x [T, dim] -> codes [T, Q] int64. A choice: no gradient."""
    split = weights.num_semantic
    chosen: list[Tensor] = []
    residual = matmul_rows(x, weights.semantic)
    for q, (table, half) in enumerate(
        zip(weights.tables.unbind(0), weights.half_norms.unbind(0), strict=True)
    ):
        if q == split:
            residual = matmul_rows(x, weights.acoustic)
        # |x - e|^2 / 2 less |x|^2 / 2, which is the same for every e
        code = (half - matmul_rows(residual, table)).argmin(-1)
        chosen.append(code)
        residual = residual - F.embedding(code, table)
    return torch.stack(chosen, 1)


def rvq_quantize_reference(
    x: Tensor,
    weights: QuantizeWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `rvq_quantize`."""
    if rows is None or rows.line_length is not None:
        codes = core(x, weights)
    else:
        codes = torch.zeros(x.shape[0], weights.tables.shape[0], dtype=torch.int64, device=x.device)
        codes = codes.index_copy(0, rows.run_rows, core(x[rows.run_rows], weights))
    return codes if out is None else out.copy_(codes)
