"""The bit rule of every dense product on a CPU: tiles of 8 rows, widths in multiples of 16.

torch's own matmul changes a row's bits with the number of rows beside it. A product of exactly 8
rows does not, wherever the row stands in the tile, so the references only ever ask for that
(DESIGN 2).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS = 8
WIDTH = 16


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def matmul_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, each row's bits independent of the other rows.

    x [..., K], weight [N, K] of one dtype -> [..., N]. Where autograd needs the product, it is the
    plain one: tiles would make the gradient of the weight quadratic in memory, and training claims
    no bits.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return F.linear(x, weight)
    n = weight.shape[0]
    if n % WIDTH:
        weight = F.pad(weight, (0, 0, 0, round_up(n, WIDTH) - n))
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    rows = flat.shape[0]
    y = tile_product(whole_tiles(flat), weight)
    if y.shape[0] != rows:
        y = y[:rows]
    if n % WIDTH:
        y = y[:, :n].contiguous()
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], n)


def tile_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [8 * m, K], weight [N, K], N a multiple of 16 -> [8 * m, N]."""
    if x.shape[0] <= TILE_ROWS:
        return F.linear(x, weight)
    tiles = x.view(-1, TILE_ROWS, x.shape[1])
    return torch.bmm(tiles, weight.t().expand(tiles.shape[0], -1, -1)).view(x.shape[0], -1)


def whole_tiles(x: Tensor) -> Tensor:
    """x [R, K], rows of zeros behind it up to a whole tile."""
    missing = -x.shape[0] % TILE_ROWS
    if not missing:
        return x
    return torch.cat((x, _zeros(missing, x.shape[1], x.dtype, x.device)))


@lru_cache(maxsize=256)
def _zeros(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Read only."""
    return torch.zeros(rows, width, dtype=dtype, device=device)
