"""causal_conv in plain torch: a matmul over windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import opened, run_lines
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import matmul_rows


@dataclass(frozen=True)
class ConvWeights:
    """weight [Cout, K, Cin] (time before channels: a window of rows is one run of memory),
    bias [Cout] or None.

    stride rows in for each row out; pad: what stands before the stream, zeros or copies of its
    first input; elu: apply ELU to the input first.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    pad: Literal["zero", "replicate"] = "zero"
    elu: bool = False

    @property
    def history(self) -> int:
        """Inputs kept for the next call."""
        return int(self.weight.shape[1]) - self.stride

    @property
    def tail_shape(self) -> tuple[int, int]:
        """Of the `Twice` arena, a slot."""
        return self.history, int(self.weight.shape[2])

    @property
    def without_elu(self) -> ConvWeights:
        """For an input that has had it."""
        return replace(self, elu=False)


def elu(x: Tensor) -> Tensor:
    """x where positive, else exp(x) - 1.

    torch's own ELU takes another exponential for the last elements of a tensor, so its bits depend
    on the row count; expm1 does not. Under autograd the plain one serves.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return F.elu(x)
    return torch.maximum(x, torch.expm1(x.clamp_max(0)))


def core(
    x: Tensor, weights: ConvWeights, carry: Tensor | None = None, fresh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [N, L, Cin], carry [N, history, Cin] -> (y [N, L / stride, Cout], next carry).

    See `carry.CarryCore`.
    """
    lines, length, channels = x.shape
    cout, kernel, _ = weights.weight.shape
    if weights.elu:
        x = elu(x)
    history = weights.history
    if history:
        opening = x[:, :1] if weights.pad == "replicate" else x.new_zeros(1, 1, 1)
        before = opened(carry, fresh, opening).expand(lines, history, channels)
        x = torch.cat([before, x], 1)
    windows = x.unfold(1, kernel, weights.stride).transpose(2, 3)
    flat = windows.reshape(lines, length // weights.stride, kernel * channels).contiguous()
    dtype = weights.weight.dtype
    y = matmul_rows(flat, weights.weight.reshape(cout, kernel * channels).to(x.dtype))
    y = y if weights.bias is None else y + weights.bias
    return y.to(dtype), x[:, length:]


def causal_conv_reference(
    x: Tensor,
    weights: ConvWeights,
    state: Twice | None = None,
    rows: RowBatch | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """See `causal_conv`."""
    step = partial(core, weights=weights)
    return run_lines(
        step, x, state, rows, down=weights.stride, width=weights.weight.shape[0], out=out
    )
