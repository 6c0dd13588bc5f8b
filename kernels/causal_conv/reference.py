"""causal_conv in plain torch: a matmul over windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from microturn.kernels.arena import Twice
from microturn.kernels.carry import opened, run_lines
from microturn.kernels.rows import RowBatch
from microturn.kernels.tiles import TILE_ROWS, WIDTH, matmul_rows


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

    @cached_property
    def laid(self) -> Laid:
        """Outside autograd: the object is kept from tick to tick."""
        return Laid(self.weight.flatten(1))

    @property
    def without_elu(self) -> ConvWeights:
        """For an input that has had it."""
        return replace(self, elu=False)


class Laid:
    """A matrix [N, K] as the tiles of a product want it."""

    def __init__(self, matrix: Tensor) -> None:
        self.width = int(matrix.shape[0])
        missing = -self.width % WIDTH
        self.matrix = F.pad(matrix, (0, 0, 0, missing)) if missing else matrix
        self._by_tiles: dict[int, Tensor] = {}

    def product(self, x: Tensor, *shape: int) -> Tensor:
        """x [R, K], or windows [n, L, K] that overlap in memory -> [R, N] as `shape`:
        `tiles.matmul_rows`.
        """
        rows, wide = x.shape[:-1].numel(), x.shape[-1]
        if rows <= TILE_ROWS or rows % TILE_ROWS:
            y = matmul_rows(x.reshape(rows, wide), self.matrix)
        else:
            tiles = rows // TILE_ROWS
            if tiles not in self._by_tiles:
                self._by_tiles[tiles] = self.matrix.t().expand(tiles, -1, -1)
            y = torch.bmm(x.reshape(tiles, TILE_ROWS, wide), self._by_tiles[tiles])
        if y.shape[-1] != self.width:
            return y[..., : self.width].reshape(shape)
        return y.view(shape)


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
        if carry is None or fresh is not None:
            opening = x[:, :1] if weights.pad == "replicate" else x.new_zeros(1, 1, 1)
            carry = opened(carry, fresh, opening).expand(lines, history, channels)
        x = torch.cat([carry, x], 1)
    dtype = weights.weight.dtype
    shape = lines, length // weights.stride, kernel * channels
    if torch.is_grad_enabled() or dtype != x.dtype:
        windows = x.unfold(1, kernel, weights.stride).transpose(2, 3).reshape(shape)
        y = matmul_rows(windows, weights.weight.flatten(1).to(x.dtype))
    else:
        x = x.contiguous()
        windows = x
        if kernel > 1:
            run = weights.stride * channels
            windows = x.as_strided(shape, (x.shape[1] * channels, run, 1))
        y = weights.laid.product(windows, *shape[:2], cout)
    if weights.bias is not None:
        y = y + weights.bias
    return y if y.dtype == dtype else y.to(dtype), x[:, length:] if history else x


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
