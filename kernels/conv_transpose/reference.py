"""conv_transpose in plain torch: a matmul, then overlap-add with the tail."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import opened, run_lines
from microturn.kernels.causal_conv.reference import Laid, elu
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

    @cached_property
    def laid(self) -> Laid:
        """Outside autograd: the object is kept from tick to tick."""
        return Laid(self.weight.flatten(0, 1))


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
    shape = lines, length, weights.overlap, stride * weights.width
    if weight.dim() == 2:
        spread = (x.unsqueeze(2) * weight).view(shape)
    elif torch.is_grad_enabled():
        spread = matmul_rows(x, weight.flatten(0, 1)).view(shape)
    else:
        spread = weights.laid.product(x, *shape)
    parts = spread.unbind(2)
    if carry is None or fresh is not None:
        carry = opened(carry, fresh, x.new_zeros(1, 1, 1)).expand(lines, *weights.tail_shape)
    y = parts[-1]
    tails: list[Tensor] = []
    for j in range(weights.overlap - 2, -1, -1):
        late = torch.cat([carry[:, j : j + 1] if weights.overlap > 2 else carry, y], 1)
        tails.append(late[:, length:])
        y = late[:, :length] + parts[j]
    tail = carry
    if tails:
        tail = tails[0] if len(tails) == 1 else torch.cat(tails[::-1], 1)
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
