"""rvq_dequantize in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


@dataclass(frozen=True)
class DequantizeWeights:
    """tables [Q, size, d]; the first num_semantic books are summed and projected by `semantic`
    [dim, d], the others by `acoustic` [dim, d].
    """

    tables: Tensor
    semantic: Tensor
    acoustic: Tensor
    num_semantic: int = 1

    @cached_property
    def folded(self) -> Tensor:
        """[Q, size, dim] fp32: every row of a book projected. Keep the object: this is no work for
        a tick.
        """
        split = self.num_semantic
        groups = (
            (self.tables[:split], self.semantic),
            (self.tables[split:], self.acoustic),
        )
        with torch.no_grad():
            return torch.cat([books.float() @ matrix.float().T for books, matrix in groups])


def core(codes: Tensor, weights: DequantizeWeights) -> Tensor:
    """codes [T, q] int64, q <= Q -> [T, dim]. Differentiable in the weights."""
    size = weights.tables.shape[1]
    count = codes.shape[1]
    index = codes + _first_rows(count, size, codes.device)
    vectors = F.embedding(index, weights.tables.flatten(0, 1)).unbind(1)
    split = weights.num_semantic
    y = matmul_rows(_sum(vectors[:split]), weights.semantic)
    if count > split:
        y = y + matmul_rows(_sum(vectors[split:]), weights.acoustic)
    return y


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _first_rows(count: int, size: int, device: torch.device) -> Tensor:
    """[count] int64: where each book begins among the rows of all. Read only."""
    return torch.arange(0, count * size, size, device=device)


def _sum(vectors: tuple[Tensor, ...]) -> Tensor:
    """In order: torch.sum over a middle axis chooses its own by the shape."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def rvq_dequantize_reference(
    x: Tensor,
    weights: DequantizeWeights,
    state: None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `rvq_dequantize`."""
    if rows is None or rows.line_length is not None:
        y = core(_checked(x, weights), weights)
    else:
        y = weights.tables.new_zeros(x.shape[0], weights.semantic.shape[0])
        y = y.index_copy(0, rows.run_rows, core(_checked(x[rows.run_rows], weights), weights))
    return y if out is None else out.copy_(y)


def _checked(codes: Tensor, weights: DequantizeWeights) -> Tensor:
    size = int(weights.tables.shape[1])
    if codes.numel():
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= size:
            raise ValueError(
                f"rvq_dequantize: codes must lie in 0..{size - 1}, got {low}..{high}; "
                f"special ids never reach the codec"
            )
    return codes
