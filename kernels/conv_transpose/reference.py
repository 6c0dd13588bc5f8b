"""conv_transpose in plain torch: a matmul, then overlap-add with the tail."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import opened, run_lines
from microturn.kernels.causal_conv.reference import elu
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


@dataclass(frozen=True)
class ConvTransposeWeights:
    """weight [K, Cout, Cin], or [K, C] when every channel has a kernel of its own (depthwise);
    bias [Cout] or None.

    stride rows out for each row in, K a multiple of it; elu: apply ELU to the input first.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int
    elu: bool = False

    @property
    def overlap(self) -> int:
        """Inputs that reach into one output."""
        return int(self.weight.shape[0]) // self.stride

    @property
    def width_in(self) -> int:
        return int(self.weight.shape[-1])

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    @property
    def tail_shape(self) -> tuple[int, int]:
        """Of the `Twice` arena, a slot: sums for the next (overlap - 1) * stride outputs, one
        row for each input still to come.
        """
        return self.overlap - 1, self.stride * self.width


def core(
    x: Tensor,
    weights: ConvTransposeWeights,
    carry: Tensor | None = None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x [N, L, Cin], carry [N, overlap - 1, stride * Cout] -> (y [N, L * stride, Cout], next
    carry).

    The carry holds no bias: that is added once, when an output is finished. Contributions to an
    output are added oldest input first, whatever the cut. See `carry.CarryCore`.
    """
    lines, length, _ = x.shape
    weight, stride = weights.weight, weights.stride
    if weights.elu:
        x = elu(x)
    if weight.dim() == 2:
        spread = x.unsqueeze(2) * weight
    else:
        spread = matmul_rows(x, weight.reshape(-1, weight.shape[2]))
    parts = spread.reshape(lines, length, weights.overlap, stride * weights.width)
    before = opened(carry, fresh, x.new_zeros(1, 1, 1)).expand(lines, *weights.tail_shape)
    y = parts[:, :, -1]
    tails: list[Tensor] = []
    for j in range(weights.overlap - 2, -1, -1):
        tails.append(y[:, -1:])
        y = torch.cat([before[:, j : j + 1], y[:, :-1]], 1) + parts[:, :, j]
    tail = torch.cat(tails[::-1], 1) if tails else before
    y = y.reshape(lines, length * stride, weights.width)
    return y if weights.bias is None else y + weights.bias, tail


def conv_transpose_reference(
    x: Tensor,
    weights: ConvTransposeWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `conv_transpose`."""
    step = partial(core, weights=weights)
    return run_lines(step, x, state, rows, up=weights.stride, width=weights.width, out=out)
