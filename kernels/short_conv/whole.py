"""The short convolution of whole lines, packed, with its gradient: what a model trains with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch


def convolve_whole(x: Tensor, weights: Tensor, rows: RowBatch) -> Tensor:
    """x [T, C], every line of rows from position 0 on, weights [C, K] -> [T, C], dtype of x."""
    heads = _heads(rows, weights.shape[1])
    y: Tensor = _Packed.apply(x.float(), weights.float(), heads)  # type: ignore[no-untyped-call]
    return y.to(x.dtype)


def _heads(rows: RowBatch, kernel_size: int) -> list[Tensor]:
    """For 1 to K - 1 rows back: the rows, less that many, that have none there in their line."""
    key = ("short_conv whole", kernel_size)
    if key not in rows.derived:
        at = rows.positions
        rows.derived[key] = [(at[m:] < m).nonzero()[:, 0] for m in range(1, kernel_size)]
    heads: list[Tensor] = rows.derived[key]
    return heads


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, heads: list[Tensor]) -> Tensor:
        taps = weights.t().contiguous()
        last = len(heads)
        total = torch.zeros_like(x)
        for m in range(last, 0, -1):  # the oldest first, as `core` does
            total[m:] += (x[:-m] * taps[last - m]).index_fill_(0, heads[m - 1], 0.0)
        ctx.save_for_backward(x, taps)
        ctx.heads = heads
        return total.addcmul_(x, taps[last]).add_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, taps = ctx.saved_tensors
        last = len(ctx.heads)
        dx = grad * (1 + taps[last])
        d_taps = [(grad * x).sum(0)]
        for m, head in enumerate(ctx.heads, 1):
            up = grad[m:].index_fill(0, head, 0.0)
            dx[:-m].addcmul_(up, taps[last - m])
            d_taps.insert(0, (up * x[:-m]).sum(0))
        return dx, torch.stack(d_taps, 1), None
