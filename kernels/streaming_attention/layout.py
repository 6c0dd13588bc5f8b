"""Which keys meet which queries in a packed step.

Queries of a line are numbered row by row, inside a row by their place in the group of query heads
that share a kv head, and cut into tiles of 8. Keys are cut into leaves of 128, left-aligned to
absolute position. A pair is a tile and a leaf of the same line that holds a key visible to it.
Tiles are worked on a part at a time, so that what a part touches stays in the cache; the leaves of
a line are gathered once, however many of its tiles see them.

Worked example: window 512, 2 query heads a kv head, one line of 5 rows from position 700. Its 10
queries fill tile 0 (rows 700 to 703) and a quarter of tile 1 (row 704; the rest of tile 1 repeats
the last query, which does no harm). Tile 0 sees positions 189 to 703 in leaves 1 to 5, tile 1 sees
193 to 704 in leaves 1 to 5, all in one group of 8. So 5 leaves are gathered for 10 pairs, in two
runs (pairs 0 to 4 are tile 0 with gathered leaves 0 to 4, pairs 5 to 9 tile 1 with the same), and
their partials go to cells 1 to 5 and 9 to 13 of 2 tiles x 1 group x 8 cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple

import torch
from torch import Tensor

from microturn.kernels.arena import LEAF
from microturn.kernels.rows import Line, RowBatch
from microturn.kernels.tiles import TILE_ROWS

GROUP_LEAVES = 8
PART_LEAVES = 32
"""Leaves, counted once for each kv head, beyond which no further line joins a gathering: 1 MB at 64
values a head."""
PART_PAIRS = 160
"""Pairs, counted once for each kv head, that a part works on: 640 kB of logits."""


class _Tile(NamedTuple):
    """Queries first_query and on of `line`, which see positions lowest to highest."""

    line: Line
    first_query: int
    lowest: int
    highest: int

    @property
    def leaves(self) -> range:
        return range(self.lowest // LEAF, self.highest // LEAF + 1)


class Run(NamedTuple):
    """`length` pairs from `pair` on meet as many gathered leaves from `leaf` on, one each."""

    pair: int
    leaf: int
    length: int


@dataclass(frozen=True, eq=False)
class Leaves:
    """L leaves gathered together, for one part or several in a row.

    slot  [L] int64, index [L] int64: which leaf of which stream
    rows  [L, Hkv, 128] int64: (key, kv head) in a leaf, head before key. A key that no query sees
          may be a former tenant's: the nearest one seen stands for it
    """

    slot: Tensor
    index: Tensor
    rows: Tensor


@dataclass(frozen=True)
class AttentionPart:
    """N tiles and their P pairs, for Hkv kv heads.

    queries    [N * Hkv * 8] int64: flat (row, q head) in each place of each tile
    positions  [N, 1, 8, 1] int64: position of each query
    pair_tile  [P] int64
    leaf_index [P] int64: which leaf of the stream
    leaves     what is gathered, for the next part too if that has the same
    runs       which gathered leaf each pair meets
    num_groups most groups of leaves that any tile spans
    cells      [P] int64: place of a pair's partial in [N, num_groups, 8]
    """

    queries: Tensor
    positions: Tensor
    pair_tile: Tensor
    leaf_index: Tensor
    leaves: Leaves
    runs: tuple[Run, ...]
    num_groups: int
    cells: Tensor


def _tiles(rows: RowBatch, window: int, group: int) -> Iterator[_Tile]:
    for line in rows.lines:
        num_queries = (line.stop - line.start) * group
        for first in range(0, num_queries, TILE_ROWS):
            last = min(first + TILE_ROWS, num_queries) - 1
            lowest = max(0, line.position + first // group - window + 1)
            yield _Tile(line, first, lowest, line.position + last // group)


def _column(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def _gather(
    tiles: Iterable[_Tile], num_kv_heads: int, device: torch.device
) -> tuple[Leaves, dict[Line, int]]:
    """The leaves that tiles see, and by line the place of its leaf 0, were that gathered too."""
    slots: list[int] = []
    leaves: list[int] = []
    first_keys: list[int] = []
    last_keys: list[int] = []
    places: dict[Line, int] = {}
    for line, of_line in groupby(tiles, key=lambda tile: tile.line):
        mine = list(of_line)
        seen = range(mine[0].leaves.start, mine[-1].leaves.stop)
        places[line] = len(leaves) - seen.start
        slots += [line.slot] * len(seen)
        leaves += seen
        first_keys += [max(0, mine[0].lowest - leaf * LEAF) for leaf in seen]
        last_keys += [min(LEAF - 1, mine[-1].highest - leaf * LEAF) for leaf in seen]
    first, last = _column(first_keys, device), _column(last_keys, device)
    keys = torch.arange(LEAF, device=device).clamp(first[:, None, None], last[:, None, None])
    heads = torch.arange(num_kv_heads, device=device)[:, None]
    rows = keys * num_kv_heads + heads
    return Leaves(_column(slots, device), _column(leaves, device), rows), places


def _runs(tiles: list[_Tile], places: dict[Line, int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    last = Run(0, -1, 0)
    for tile in tiles:
        leaf, count = places[tile.line] + tile.leaves.start, len(tile.leaves)
        if leaf == last.leaf + last.length:
            last = last._replace(length=last.length + count)
            runs[-1] = last
        else:
            last = Run(last.pair + last.length, leaf, count)
            runs.append(last)
    return tuple(runs)


def _build(
    tiles: list[_Tile],
    leaves: Leaves,
    places: dict[Line, int],
    num_kv_heads: int,
    group: int,
    device: torch.device,
) -> AttentionPart:
    def column(values: list[int]) -> Tensor:
        return _column(values, device)

    pair_tile = column([i for i, tile in enumerate(tiles) for _ in tile.leaves])
    leaf_index = column([leaf for tile in tiles for leaf in tile.leaves])
    groups = [tile.leaves.start // GROUP_LEAVES for tile in tiles]
    last_groups = [(tile.leaves.stop - 1) // GROUP_LEAVES for tile in tiles]
    num_groups = 1 + max(last - first for first, last in zip(groups, last_groups, strict=True))
    cells = column(
        [
            (i * num_groups - g) * GROUP_LEAVES + leaf
            for i, (g, tile) in enumerate(zip(groups, tiles, strict=True))
            for leaf in tile.leaves
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
    return AttentionPart(
        queries=queries.reshape(-1),
        positions=positions[:, None, :, None],
        pair_tile=pair_tile,
        leaf_index=leaf_index,
        leaves=leaves,
        runs=_runs(tiles, places),
        num_groups=num_groups,
        cells=cells,
    )


def build_parts(
    rows: RowBatch, window: int, num_kv_heads: int, group: int
) -> tuple[AttentionPart, ...]:
    """The parts of the lines that run, `group` query heads to a kv head."""
    batches: list[list[list[_Tile]]] = []
    line: Line | None = None
    leaves = pairs = 0
    for tile in _tiles(rows, window, group):
        count = len(tile.leaves)
        pairs += count
        if tile.line is not line:
            line = tile.line
            leaves += count
            if leaves * num_kv_heads > PART_LEAVES or not batches:
                batches.append([[]])
                leaves = pairs = count
        if pairs * num_kv_heads > PART_PAIRS and batches[-1][-1]:
            batches[-1].append([])
            pairs = count
        batches[-1][-1].append(tile)
    device = rows.positions.device
    built: list[AttentionPart] = []
    for parts in batches:
        gathered, places = _gather(chain.from_iterable(parts), num_kv_heads, device)
        built += [_build(p, gathered, places, num_kv_heads, group, device) for p in parts]
    return tuple(built)
