"""The list of expert tiles that a router's kernel leaves for the experts' kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from microturn.kernels.rows import RowBatch

DECODE_ROWS = 256
"""Most rows of a decode step: one pass over the weights, and the router lists the experts."""


TILE_ROWS = 32
"""Rows of one expert that go through its weights together, at most, in a decode step."""


def padded(n: int) -> int:
    """The least power of two >= n; 1 for 0."""
    return 1 << max(n - 1, 0).bit_length()


def rows_on_device(rows: RowBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The lines as kernels take them: offsets, slots, and whether each runs, as bytes."""
    return rows.row_offsets, rows.slot_ids, rows.exec_mask.view(torch.uint8)


class Room:
    """Where kernels that make no list leave room for those that will: `size` as in ExpertWork.

    No dataclass: see there.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = torch.empty(4, dtype=torch.int32, device=device)


class ExpertWork:
    """The pairs (row t, choice a) of rows that run, sorted by expert, on the device.

    Pair p = t * A + a. `tiles` says of each run of at most `tile_rows` pairs of one expert where
    it begins and how long it is; experts rise, and those that no row chose do not occur.

    size  [4], how many of `tiles` there are, of how many experts, and two of nothing
    tiles [bound, 4]: expert, first place, rows, 0
    pairs [T * A]: place -> pair
    experts [T * A]: what was sorted: ids, E where the row does not run
    scratch: what the kernel that makes the list needs until it ends; kept, so that no later
          allocation gets memory that it still reads

    All int32. No dataclass: walks over an op's tensors pass it by.
    """

    def __init__(
        self,
        num_rows: int,
        top_k: int,
        num_experts: int,
        device: torch.device,
        tile_rows: int = TILE_ROWS,
        size: Tensor | None = None,
    ) -> None:
        """size: where others will look for it."""
        pairs = num_rows * top_k
        # Each expert hit begins one tile, and a further one after every `tile_rows` pairs.
        self.bound = min(pairs, num_experts + pairs // tile_rows)
        self.tile_rows = tile_rows
        sizes = [4, 4 * self.bound, pairs, pairs]
        # One buffer; tiles begin at 16 bytes.
        buffer = torch.empty(sum(sizes), dtype=torch.int32, device=device)
        self.size, self.tiles, self.pairs, self.experts = torch.split(buffer, sizes)
        self.size = self.size if size is None else size
        self.scratch: tuple[Tensor, ...] = ()
        self._made_of: tuple[object, ...] = ()

    def made_of(self, x: Tensor, topk_ids: Tensor, rows: RowBatch | None) -> None:
        """Remembers what the list was made of."""
        self._made_of = (x, topk_ids, rows)

    def fits(self, x: Tensor, topk_ids: Tensor, rows: RowBatch | None) -> bool:
        """Whether the list was made of these very objects."""
        now = (x, topk_ids, rows)
        return len(self._made_of) == 3 and all(
            a is b for a, b in zip(self._made_of, now, strict=True)
        )
