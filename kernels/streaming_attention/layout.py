"""Which keys meet which queries in a packed step.

Queries of a line are numbered row by row, inside a row by their place in the group of query heads
that share a kv head, and cut into tiles of 8. Keys are cut into leaves of 128, left-aligned to
absolute position. A pair is a tile and a leaf of the same line that holds a key visible to it.
Tiles are worked on a part at a time, so that what a part gathers stays in the cache.

Worked example: window 512, 2 query heads a kv head, one line of 5 rows from position 700. Its 10
queries fill tile 0 (rows 700 to 703) and a quarter of tile 1 (row 704; the rest of tile 1 repeats
the last query, which does no harm). Tile 0 sees positions 189 to 703 in leaves 1 to 5, tile 1 sees
193 to 704 in leaves 1 to 5, all in one group of 8. So there are 10 pairs, and their partials go to
cells 1 to 5 and 9 to 13 of 2 tiles x 1 group x 8 cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from microturn.kernels.arena import LEAF
from microturn.kernels.rows import Line, RowBatch
from microturn.kernels.tiles import TILE_ROWS

GROUP_LEAVES = 8
PART_LEAVES = 32
"""Leaves, counted once for each kv head, that a part gathers: 1 MB at 64 values a head."""


class _Tile(NamedTuple):
    """Queries first_query and on of `line`, which see leaves first_leaf to last_leaf."""

    line: Line
    first_query: int
    first_leaf: int
    last_leaf: int


@dataclass(frozen=True)
class AttentionPart:
    """N tiles and their P pairs, for Hkv kv heads.

    queries    [N * Hkv * 8] int64: flat (row, q head) in each place of each tile
    positions  [N, 1, 8, 1] int64: position of each query
    pair_tile  [P] int64
    leaf_slot  [P] int64, leaf_index [P] int64: which leaf of which stream
    distance   [P, 1, 8, 128] int64: query position - key position
    hidden     [P, 1, 8, 128] bool: keys outside the query's window
    dead       int64: (pair, kv head, key) of the keys that no query of the tile sees, flat
    num_groups most groups of leaves that any tile spans
    cells      [P] int64: place of a pair's partial in [N, num_groups, 8]
    """

    queries: Tensor
    positions: Tensor
    pair_tile: Tensor
    leaf_slot: Tensor
    leaf_index: Tensor
    distance: Tensor
    hidden: Tensor
    dead: Tensor
    num_groups: int
    cells: Tensor


def _tiles(rows: RowBatch, window: int, group: int) -> Iterator[_Tile]:
    for line in rows.lines:
        num_queries = (line.stop - line.start) * group
        for first in range(0, num_queries, TILE_ROWS):
            last = min(first + TILE_ROWS, num_queries) - 1
            lowest = max(0, line.position + first // group - window + 1)
            highest = line.position + last // group
            yield _Tile(line, first, lowest // LEAF, highest // LEAF)


def _build(
    tiles: list[_Tile], window: int, num_kv_heads: int, group: int, device: torch.device
) -> AttentionPart:
    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    spans = [range(tile.first_leaf, tile.last_leaf + 1) for tile in tiles]
    groups = [tile.first_leaf // GROUP_LEAVES for tile in tiles]
    num_groups = 1 + max(
        t.last_leaf // GROUP_LEAVES - g for t, g in zip(tiles, groups, strict=True)
    )
    pair_tile = column([i for i, span in enumerate(spans) for _ in span])
    leaf_index = column([leaf for span in spans for leaf in span])
    leaf_slot = column([t.line.slot for t, s in zip(tiles, spans, strict=True) for _ in s])
    cells = column(
        [
            (i * num_groups - g) * GROUP_LEAVES + leaf
            for i, (g, span) in enumerate(zip(groups, spans, strict=True))
            for leaf in span
        ]
    )

    begin = column([tile.first_query for tile in tiles])[:, None]
    end = column([(t.line.stop - t.line.start) * group - 1 for t in tiles])[:, None]
    row = column([tile.line.start for tile in tiles])[:, None]
    position = column([tile.line.position for tile in tiles])[:, None]
    query = torch.minimum(begin + torch.arange(TILE_ROWS, device=device), end)
    local = query // group
    heads = torch.arange(num_kv_heads, device=device)[:, None]
    queries = ((row + local)[:, None] * num_kv_heads + heads) * group + (query % group)[:, None]
    positions = position + local
    keys = leaf_index[:, None] * LEAF + torch.arange(LEAF, device=device)
    distance = positions[pair_tile][:, :, None] - keys[:, None, :]
    hidden = (distance < 0) | (distance >= window)
    dead = hidden.all(1)[:, None].expand(-1, num_kv_heads, -1).reshape(-1).nonzero()[:, 0]
    return AttentionPart(
        queries=queries.reshape(-1),
        positions=positions[:, None, :, None],
        pair_tile=pair_tile,
        leaf_slot=leaf_slot,
        leaf_index=leaf_index,
        distance=distance[:, None],
        hidden=hidden[:, None],
        dead=dead,
        num_groups=num_groups,
        cells=cells,
    )


def build_parts(
    rows: RowBatch, window: int, num_kv_heads: int, group: int
) -> tuple[AttentionPart, ...]:
    """The parts of the lines that run, `group` query heads to a kv head."""
    budget = max(1, PART_LEAVES // num_kv_heads)
    batches: list[list[_Tile]] = []
    left = 0
    for tile in _tiles(rows, window, group):
        count = tile.last_leaf - tile.first_leaf + 1
        if count > left or not batches:
            batches.append([])
            left = budget
        batches[-1].append(tile)
        left -= count
    device = rows.positions.device
    return tuple(_build(tiles, window, num_kv_heads, group, device) for tiles in batches)
