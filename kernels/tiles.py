"""The bit rule of every dense product on a CPU: tiles of 8 rows, widths in multiples of 16.

torch's own matmul changes a row's bits with the number of rows beside it. A product of exactly 8
rows does not, wherever the row stands in the tile, so the references only ever ask for that
(DESIGN 2).
"""

from __future__ import annotations

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
    flat = x.reshape(-1, x.shape[-1])
    rows = flat.shape[0]
    padded = round_up(rows, TILE_ROWS)
    if padded != rows:
        flat = F.pad(flat, (0, 0, 0, padded - rows))
    if padded <= TILE_ROWS:
        y = F.linear(flat, weight)
    else:
        tiles = flat.view(-1, TILE_ROWS, flat.shape[1])
        y = torch.bmm(tiles, weight.t().expand(tiles.shape[0], -1, -1)).view(padded, -1)
    return y[:rows, :n].reshape(*x.shape[:-1], n)
